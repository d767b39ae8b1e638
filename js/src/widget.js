// The anywidget: traits are options, both ways; the NeRF is asked for by messages
import {mount} from './mount.js'
import {DEFAULTS} from './options.js'

const bytes = view => view && view.byteLength ? new Uint8Array(view.buffer ?? view, view.byteOffset ?? 0, view.byteLength).slice() : null
const KEYS = Object.keys(DEFAULTS)

export function render({model, el}) {
  const read = key => key === 'environment_picture' ? bytes(model.get(key)) : model.get(key)
  const waiting = new Map()
  let number = 0
  const ask = request => new Promise((answered, failed) => {
    const id = ++number
    waiting.set(id, {answered, failed})
    model.send({kind: 'nerf', id, view: me, ...request})
  })
  const me = Math.random().toString(36).slice(2)
  const said = (message, buffers) => {
    if (message?.kind !== 'nerf' || message.view !== me || !waiting.has(message.id)) return
    const {answered, failed} = waiting.get(message.id)
    waiting.delete(message.id)
    if (message.error) failed(new Error(message.error))
    else answered({...message, pixels: bytes(buffers[0])})
  }
  const viewer = mount(el, bytes(model.get('glb')), {...Object.fromEntries(KEYS.map(k => [k, read(k)])), ask: model.get('has_nerf') ? ask : null})
  model.on('msg:custom', said)

  const told = {}                                    // what came from here and must not come back as news
  const listeners = KEYS.map(key => [`change:${key}`, () => { if (told[key] !== model.get(key)) viewer.set({[key]: read(key)}); delete told[key] }])
  listeners.push(['change:glb', () => viewer.load(bytes(model.get('glb')))])
  listeners.push(['change:has_nerf', () => viewer.askBy(model.get('has_nerf') ? ask : null)])
  listeners.push(['change:nerf_version', () => viewer.refresh()])
  for (const [name, heard] of listeners) model.on(name, heard)
  viewer.on('change', changed => {
    for (const [key, value] of Object.entries(changed)) if (model.get(key) !== value) { told[key] = value; model.set(key, value) }
    model.save_changes()
  })
  const asked = message => {                         // Python asks for a picture
    if (message?.kind !== 'screenshot') return
    viewer.screenshot().then(blob => blob.arrayBuffer()).then(data => model.send({kind: 'screenshot', id: message.id}, undefined, [data]))
      .catch(e => model.send({kind: 'screenshot', id: message.id, error: String(e.message ?? e)}))
  }
  model.on('msg:custom', asked)
  return () => {
    model.off('msg:custom', said)
    model.off('msg:custom', asked)
    for (const [name, heard] of listeners) model.off(name, heard)
    viewer.dispose()
  }
}
