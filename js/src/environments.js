// Pictures of the whole sphere: the middle column looks along +X, +Z is to the right of it, +Y on top (as in dreamfusion_nb.scenes)
import {ClampToEdgeWrapping, DataTexture, DataUtils, HalfFloatType, LinearFilter, NoColorSpace, RepeatWrapping, RGBAFormat, UnsignedByteType} from 'three'
import table from './environments.json'

export const NAMES = Object.keys(table)
const radians = Math.PI/180
export const direction = (azimuth, elevation) => {
  const a = azimuth*radians, e = elevation*radians
  return [Math.sin(a)*Math.cos(e), Math.sin(e), Math.cos(a)*Math.cos(e)]
}

// Directions of the texels' middles, row by row from the top
function directions(height) {
  const d = new Float32Array(height*height*6)
  for (let y = 0, k = 0; y < height; y++) for (let x = 0; x < 2*height; x++) {
    const e = Math.PI*(.5 - (y + .5)/height), a = Math.PI*((x + .5)/height - 1)
    d[k++] = Math.cos(e)*Math.cos(a); d[k++] = Math.sin(e); d[k++] = Math.cos(e)*Math.sin(a)
  }
  return d
}

// A sky that changes with the elevation, and lamps that fade like exp((cos - 1)/(1 - cos(width)))
export function paint(name, height) {
  const {sky, lamps} = table[name], d = directions(height), colour = new Float32Array(d.length)
  for (let k = 0; k < d.length; k += 3) {
    const e = Math.asin(Math.max(-1, Math.min(1, d[k + 1])))/radians
    let i = 0
    while (i < sky.length - 2 && e > sky[i + 1][0]) i++
    const [[e0, c0], [e1, c1]] = [sky[i], sky[i + 1]], s = Math.max(0, Math.min(1, (e - e0)/(e1 - e0)))
    for (let c = 0; c < 3; c++) colour[k + c] = c0[c] + s*(c1[c] - c0[c])
    for (const [azimuth, elevation, width, strength] of lamps) {
      const l = direction(azimuth, elevation)
      const near = Math.exp((d[k]*l[0] + d[k + 1]*l[1] + d[k + 2]*l[2] - 1)/(1 - Math.cos(width*radians)))
      for (let c = 0; c < 3; c++) colour[k + c] += strength[c]*near
    }
  }
  return colour
}

// Means over blocks, each row by its solid angle
function shrink(colour, height, to) {
  const n = height/to, small = new Float32Array(to*to*6)
  for (let y = 0; y < to; y++) for (let x = 0; x < 2*to; x++) {
    let total = 0; const sum = [0, 0, 0]
    for (let j = 0; j < n; j++) {
      const solid = Math.cos(Math.PI*(.5 - (y*n + j + .5)/height))
      for (let i = 0; i < n; i++) {
        const k = ((y*n + j)*2*height + x*n + i)*3
        total += solid
        for (let c = 0; c < 3; c++) sum[c] += solid*colour[k + c]
      }
    }
    for (let c = 0; c < 3; c++) small[(y*2*to + x)*3 + c] = sum[c]/total
  }
  return small
}

// The light that falls on a surface, by its normal: each texel by its solid angle and its cosine, divided by pi
export function irradiance(colour, height) {
  const d = directions(height), lit = new Float32Array(d.length), step = Math.PI/height
  for (let n = 0; n < d.length; n += 3) {
    let r = 0, g = 0, b = 0
    for (let k = 0; k < d.length; k += 3) {
      const cosine = d[n]*d[k] + d[n + 1]*d[k + 1] + d[n + 2]*d[k + 2]
      if (cosine <= 0) continue
      const w = cosine*Math.sqrt(Math.max(0, 1 - d[k + 1]*d[k + 1]))
      r += w*colour[k]; g += w*colour[k + 1]; b += w*colour[k + 2]
    }
    const s = 2*Math.sin(step/2)*step/Math.PI
    lit[n] = r*s; lit[n + 1] = g*s; lit[n + 2] = b*s
  }
  return lit
}

function texture(colour, height, half) {
  const data = half ? new Uint16Array(height*height*8) : new Uint8Array(height*height*8)
  for (let k = 0, j = 0; k < colour.length; k += 3) {
    for (let c = 0; c < 3; c++) data[j++] = half ? DataUtils.toHalfFloat(colour[k + c]) : Math.round(255*Math.min(1, colour[k + c]))
    data[j++] = half ? DataUtils.toHalfFloat(1) : 255
  }
  const t = new DataTexture(data, 2*height, height, RGBAFormat, half ? HalfFloatType : UnsignedByteType)
  Object.assign(t, {minFilter: LinearFilter, magFilter: LinearFilter, wrapS: RepeatWrapping, wrapT: ClampToEdgeWrapping, colorSpace: NoColorSpace, needsUpdate: true})
  return t
}

const ROWS = 32
function both(colour, height) {
  const small = height > ROWS ? shrink(colour, height, ROWS) : colour
  return {sky: texture(colour, height), light: texture(irradiance(small, Math.min(height, ROWS)), Math.min(height, ROWS), true)}
}
export const named = name => both(paint(name, 256), 256)

// A picture of somebody's own; bytes or a data: address
export async function pictured(source) {
  const bytes = typeof source === 'string' ? await (await fetch(/^data:image\//.test(source) ? source : 'data:,')).blob() : new Blob([source])
  const image = await createImageBitmap(bytes)
  const height = 512, canvas = Object.assign(document.createElement('canvas'), {width: 2*height, height})
  const pen = canvas.getContext('2d', {willReadFrequently: true})
  pen.imageSmoothingQuality = 'high'
  pen.drawImage(image, 0, 0, 2*height, height)
  const seen = pen.getImageData(0, 0, 2*height, height).data, colour = new Float32Array(height*height*6)
  for (let k = 0, j = 0; k < seen.length; k += 4) for (let c = 0; c < 3; c++) colour[j++] = seen[k + c]/255
  return both(colour, height)
}
