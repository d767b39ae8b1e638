// The NeRF's own picture: asked for small while the view moves, in strips of a large one when it rests.
// One question is out at a time, and the next is about the view as it is then: nothing old is ever waited for.
const REST = 200                                    // milliseconds without a change that count as rest
const COARSE = [24, 64], FINE = [96, 160]           // pixels of the shorter side; the smaller ones for fields that are slow

export class Refiner {
  constructor(changed) {
    Object.assign(this, {changed, ask: null, picture: null, status: 'NeRF', out: false, short: 32, perPixel: 0, sharp: null, coarse: null, key: '', moved: 0, round: 0, perFine: 0})
  }

  again() { this.round++; this.key = ''; this.perFine = 0 }           // the object changed: everything is to be asked anew

  want(o, width, height) {
    if (!this.ask) return
    const view = {mode: o.mode === 'wireframe' ? 'shaded' : o.mode}
    for (const k of ['azimuth', 'elevation', 'distance', 'light_azimuth', 'light_elevation', 'light_colour', 'light_intensity', 'ambient', 'environment']) view[k] = o[k]
    const shape = Math.max(.25, Math.min(4, width/height)), key = JSON.stringify([this.round, view, shape])
    if (key !== this.key) Object.assign(this, {key, view, shape, moved: performance.now()})
    this.go()
  }

  go() {
    if (this.out || !this.ask) return
    const rested = performance.now() - this.moved > REST && this.coarse === this.key
    if (this.coarse !== this.key) this.send(...this.sizes(this.short), null)
    else if (rested && this.sharp?.key !== this.key) {
      const [width, height] = this.sizes(FINE[this.cost()*FINE[1]**2 > 5000 ? 0 : 1])
      this.sharp = {key: this.key, width, height, top: 0, pixels: enlarge(this.picture, width, height)}
      this.strip()
    } else if (rested && this.sharp.top < this.sharp.height) this.strip()
  }

  sizes(short) {                                    // both even, so that the middle of the picture lies between two pixels
    const even = x => 2*Math.round(x/2)
    return this.shape >= 1 ? [even(short*this.shape), even(short)] : [even(short), even(short/this.shape)]
  }

  cost() { return Math.max(1e-4, this.perFine || 3*this.perPixel) }   // milliseconds per fine pixel; with more samples it costs more

  strip() {
    const {width, height, top} = this.sharp
    const rows = Math.min(height - top, Math.max(4, Math.round(180/this.cost()/width)))   // about 180 ms: so long a new view has to wait at most
    this.send(width, height, {top, rows})
  }

  async send(width, height, strip) {
    const {key, view, short} = this
    this.out = true
    const late = setTimeout(() => { this.status = 'NeRF: waiting for the kernel'; this.changed() }, 1500)
    try {
      const got = await this.ask({...view, width, height, top: strip?.top ?? 0, rows: strip?.rows ?? height, samples: strip ? 96 : short > COARSE[0] ? 64 : 28})
      if (!strip) {
        this.perPixel = got.milliseconds/(width*height)
        this.coarse = key
        this.short = Math.max(COARSE[0], Math.min(COARSE[1], Math.round(short*Math.sqrt(110/Math.max(1, got.milliseconds)))))
        this.picture = [got.pixels, width, height]
      } else if (this.sharp.key === key && this.sharp.top === strip.top) {
        this.perFine = got.milliseconds/(width*strip.rows)
        this.sharp.pixels.set(got.pixels, 4*strip.top*width)
        this.sharp.top += strip.rows
        if (this.key === key) this.picture = [this.sharp.pixels, width, height]
      }
      this.status = `NeRF, ${this.picture[1]} × ${this.picture[2]}`
    } catch (e) {
      this.coarse = key
      this.sharp = {key, top: 1, height: 0}
      this.status = `NeRF: ${e.message}`
    }
    clearTimeout(late)
    this.out = false
    this.changed()
  }
}

function enlarge([from, w, h], width, height) {     // bilinear, so that the picture only gets sharper
  const to = new Uint8Array(width*height*4)
  for (let y = 0; y < height; y++) {
    const v = Math.max(0, Math.min(h - 1, (y + .5)*h/height - .5)), y0 = Math.floor(v), y1 = Math.min(h - 1, y0 + 1), fy = v - y0
    for (let x = 0; x < width; x++) {
      const u = Math.max(0, Math.min(w - 1, (x + .5)*w/width - .5)), x0 = Math.floor(u), x1 = Math.min(w - 1, x0 + 1), fx = u - x0
      for (let c = 0; c < 4; c++) {
        const at = (i, j) => from[4*(j*w + i) + c]
        to[4*(y*width + x) + c] = (at(x0, y0)*(1 - fx) + at(x1, y0)*fx)*(1 - fy) + (at(x0, y1)*(1 - fx) + at(x1, y1)*fx)*fy
      }
    }
  }
  return to
}
