import {mount} from './mount.js'

export function decode(base64) {
  const text = atob(base64), bytes = new Uint8Array(text.length)
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i)
  return bytes.buffer
}

// What a saved page calls: the viewer over its whole window
export function mountPage(element, base64, options) {
  const glb = base64 ? decode(base64) : null
  return mount(element, glb, {...options, height: null, download: true})
}
