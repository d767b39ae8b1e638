// The viewer with its buttons: DreamViewer.mount(element, glb, options) -> {set, get, load, on, screenshot, dispose, ...}
import {NAMES, paint} from './environments.js'
import {DEFAULTS, LIMITS, MODES, accept, wrap} from './options.js'
import {Refiner} from './refine.js'
import {Stage, THEMES} from './stage.js'
import css from './style.css'

const ICONS = {
  turn: '<path d="M20 12a8 8 0 1 1-2.4-5.7"/><path d="M20 3v4h-4"/>',
  panel: '<path d="M4 7h9M17 7h3M4 17h3M11 17h9"/><circle cx="15" cy="7" r="2"/><circle cx="9" cy="17" r="2"/>',
  shot: '<path d="M4 8h3l2-3h6l2 3h3v11H4z"/><circle cx="12" cy="13" r="3.5"/>',
  whole: '<path d="M4 9V4h5M15 4h5v5M20 15v5h-5M9 20H4v-5"/>',
  home: '<path d="M4 11l8-7 8 7"/><path d="M6 10v10h12V10"/>',
  save: '<path d="M12 4v11M7 11l5 5 5-5M4 20h16"/>',
}
const el = (tag, attributes = {}, ...children) => {
  const e = document.createElement(tag)
  for (const [k, v] of Object.entries(attributes)) if (k.startsWith('on')) e.addEventListener(k.slice(2), v); else if (v !== null) e.setAttribute(k, v)
  e.append(...children)
  return e
}
const icon = (name, label, onclick, more = {}) => {
  const b = el('button', {type: 'button', class: 'icon', 'aria-label': label, title: label, onclick, ...more})
  b.innerHTML = `<svg viewBox="0 0 24 24" aria-hidden="true">${ICONS[name]}</svg>`
  return b
}
const name = word => word[0].toUpperCase() + word.slice(1)
const fileName = title => (title.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, '-').replace(/^-|-$/g, '') || 'object').slice(0, 60)
const download = (blob, file) => {
  const a = el('a', {href: URL.createObjectURL(blob), download: file})
  a.click()
  setTimeout(() => URL.revokeObjectURL(a.href), 1000)
}

// JupyterLab, VS Code and Colab each say their theme in a way of their own; any other page: what the reader's system prefers
function themeOfPage() {
  const {body, documentElement: root} = document
  if (body.dataset.jpThemeLight) return body.dataset.jpThemeLight === 'false' ? 'dark' : 'light'
  if (body.dataset.vscodeThemeKind) return /dark|high-contrast$/.test(body.dataset.vscodeThemeKind) ? 'dark' : 'light'
  if (root.getAttribute('theme') ?? root.dataset.theme) return (root.getAttribute('theme') ?? root.dataset.theme) === 'dark' ? 'dark' : 'light'
  if (body.classList.contains('quarto-dark')) return 'dark'
  if (body.classList.contains('quarto-light')) return 'light'
  return matchMedia('(prefers-color-scheme: dark)').matches ? 'dark' : 'light'
}

export function mount(element, glb = null, options = {}) {
  const o = {...DEFAULTS, ...accept(options, NAMES)}
  if (options.height === null) o.height = null
  const host = el('div', {'data-lm-suppress-shortcuts': 'true', style: o.height === null ? 'height:100%' : ''})
  const shadow = host.attachShadow({mode: 'open'})
  element.append(host)

  // ---- what is on the page
  const canvas = el('canvas', {'aria-hidden': 'true'})
  const note = el('div', {class: 'note', role: 'status'}, el('span'))
  const tags = [el('div', {class: 'tag'}), el('div', {class: 'tag', role: 'status'})]
  const split = el('div', {class: 'split'})
  const stage = el('div', {class: 'stage', tabindex: '0', role: 'application', 'aria-roledescription': '3D viewer'}, canvas, split, ...tags, note)
  const segment = (label, key, words) => el('div', {class: 'seg', role: 'radiogroup', 'aria-label': label},
    ...words.map(w => el('button', {type: 'button', role: 'radio', 'data-key': key, 'data-value': w, onclick: () => change({[key]: w})}, w === 'nerf' ? 'NeRF' : name(w))))
  const shows = segment('What is shown', 'show', ['mesh', 'nerf', 'both'])
  const turn = icon('turn', 'Auto-turn (T)', () => change({auto_turn: !o.auto_turn}))
  const panelButton = icon('panel', 'Light and surroundings (L)', () => fold(!root.classList.contains('shut')))
  const bar = el('div', {class: 'bar'}, segment('Shading', 'mode', MODES), shows, el('span', {class: 'gap'}), el('span', {class: 'tools'}, turn, panelButton,
    icon('home', 'Back to the first view (R)', () => reset()), icon('shot', 'Save a picture (S)', () => shoot()),
    ...(options.download ? [icon('save', 'Save the object as .glb', () => bytes && download(new Blob([bytes], {type: 'model/gltf-binary'}), fileName(o.title) + '.glb'))] : []),
    ...(document.fullscreenEnabled && o.height !== null ? [icon('whole', 'Whole screen (F)', () => whole())] : [])))
  const sliders = {}
  const slider = (label, key, low, high, step, unit) => {
    const input = el('input', {type: 'range', min: low, max: high, step, 'aria-label': label, oninput: () => change({[key]: Number(input.value)})}), out = el('output')
    sliders[key] = {input, show: () => { input.value = o[key]; out.textContent = (unit ? Math.round(o[key]) : o[key].toFixed(2)) + unit }}
    return el('label', {class: 'row'}, el('span', {}, label), input, out)
  }
  const colour = el('input', {type: 'color', 'aria-label': 'Colour of the lamp', oninput: () => change({light_colour: colour.value})})
  const paper = el('input', {type: 'color', 'aria-label': 'Colour of the background', oninput: () => change({background: paper.value})})
  const auto = el('button', {type: 'button', style: 'height:22px;font-size:11px', onclick: () => change({background: o.background === 'auto' ? paper.value : 'auto'})}, 'auto')
  const worlds = el('div', {class: 'worlds', role: 'radiogroup', 'aria-label': 'Environment'})
  const panel = el('div', {class: 'panel'},
    el('section', {}, el('h3', {}, 'Light'), slider('Azimuth', 'light_azimuth', -180, 180, 1, '°'), slider('Elevation', 'light_elevation', -90, 90, 1, '°'),
      slider('Lamp', 'light_intensity', 0, 3, .01, ''), slider('Ambient', 'ambient', 0, 2, .01, ''), el('label', {class: 'row'}, el('span', {}, 'Colour'), colour, el('span'))),
    el('section', {}, el('h3', {}, 'Surroundings'), worlds, el('label', {class: 'row'}, el('span', {}, 'Backdrop'), paper, auto),
      el('p', {class: 'help'}, 'Drag to orbit, shift-drag to move the lamp, scroll or pinch to zoom. Keys: arrows, + and −, 1 to 5.')))
  const root = el('div', {class: 'dv shut'}, stage, ...(o.controls ? [bar, panel] : []))
  shadow.append(el('style', {}, css), root)
  if (o.height === null) root.classList.add('whole')

  // ---- state
  const listeners = {}
  const emit = (event, value) => { for (const f of listeners[event] ?? []) f(value) }
  const first = {azimuth: o.azimuth, elevation: o.elevation, distance: o.distance}
  let bytes = null, view = null, dead = false, dirty = true, seen = true, news = {}, sent = 0, timer = 0, last = 0, busy = Promise.resolve(), loads = 0, folded = null

  const say = (sentence, quiet = false) => {
    note.classList.toggle('on', Boolean(sentence))
    note.classList.toggle('quiet', quiet)
    note.firstChild.textContent = sentence ?? ''
  }
  try { view = new Stage(canvas) }
  catch { say('This browser cannot draw 3D here: WebGL is missing or switched off. Switch on hardware acceleration, or open the .glb file in another program.') }
  const refiner = new Refiner(() => { touch(); label() })
  const shownNow = () => refiner.ask ? o.show : 'mesh'         // nobody who renders the NeRF: the mesh alone
  const theme = () => o.theme === 'auto' ? themeOfPage() : o.theme
  const touch = () => { dirty = true }

  function label() {
    const both = shownNow() === 'both', wide = view ? view.width >= view.height : true
    split.style.cssText = !both ? '' : wide ? 'display:block;left:50%;top:0;bottom:0;width:1px' : 'display:block;top:50%;left:0;right:0;height:1px'
    tags[0].style.display = both ? '' : 'none'
    tags[0].textContent = 'mesh'
    tags[1].style.display = shownNow() === 'mesh' ? 'none' : ''
    tags[1].textContent = refiner.status
    tags[0].style.left = '8px'
    tags[0].style.bottom = both && !wide ? 'calc(50% + 8px)' : '8px'
    tags[1].style.left = both && wide ? 'calc(50% + 8px)' : '8px'
  }

  function show() {                                  // bring buttons and sliders to what holds
    root.dataset.theme = theme()
    root.style.colorScheme = theme()
    if (o.height !== null) stage.style.height = `${o.height}px`
    stage.setAttribute('aria-label', `${o.title || 'An object'}. Arrow keys orbit, with shift they move the lamp; plus and minus zoom; 1 to 5 change the shading; T turns.`)
    for (const b of root.querySelectorAll('[data-key]')) {
      const on = String(o[b.dataset.key] === b.dataset.value)
      b.setAttribute('aria-checked', on)
      b.tabIndex = on === 'true' ? 0 : -1
    }
    turn.setAttribute('aria-pressed', o.auto_turn)
    shows.style.display = refiner.ask ? '' : 'none'
    for (const s of Object.values(sliders)) s.show()
    colour.value = /^#[\da-f]{6}$/i.test(o.light_colour) ? o.light_colour : '#ffffff'
    auto.setAttribute('aria-pressed', o.background === 'auto')
    paper.value = /^#[\da-f]{6}$/i.test(o.background) ? o.background : THEMES[theme()][0]
    label()
    touch()
  }

  function thumbs() {
    const names = ['none', ...NAMES, ...(o.environment_picture ? ['picture'] : [])]
    if (worlds.children.length === names.length) return
    worlds.replaceChildren(...names.map(w => {
      const patch = el('i')
      if (NAMES.includes(w)) {
        const c = Object.assign(document.createElement('canvas'), {width: 64, height: 32}), pen = c.getContext('2d'), image = pen.createImageData(64, 32)
        paint(w, 32).forEach((v, k) => { image.data[Math.floor(k/3)*4 + k % 3] = 255*v; image.data[Math.floor(k/3)*4 + 3] = 255 })
        pen.putImageData(image, 0, 0)
        patch.style.backgroundImage = `url(${c.toDataURL()})`
      } else if (w === 'picture' && typeof o.environment_picture === 'string') patch.style.backgroundImage = `url("${encodeURI(o.environment_picture)}")`
      return el('button', {type: 'button', role: 'radio', 'data-key': 'environment', 'data-value': w, onclick: () => change({environment: w})}, patch, w === 'picture' ? 'Yours' : name(w))
    }))
  }

  function surround() {
    if (!view) return
    thumbs()
    busy = busy.then(() => view.surround(o.environment, o.environment_picture)).then(() => { say(null); hint() },
      () => { view.environment = null; say('The picture of the environment cannot be read: give a PNG or a JPEG.') }).then(touch)
  }
  const hint = () => { if (!bytes) say('Nothing to show yet.', true) }

  // ---- changes: from outside (`set`), or by hand (`change`: these are told to whoever listens)
  function set(given) {
    const good = accept(given, NAMES)
    if (o.height === null) delete good.height
    const before = {...o}
    Object.assign(o, good)
    if (['environment', 'environment_picture'].some(k => k in good && good[k] !== before[k])) surround()
    if ('fit' in good && good.fit !== before.fit && bytes) load(bytes)
    if (Object.keys(good).some(k => o[k] !== before[k])) show()
  }
  function change(given) {
    set(given)
    for (const k of Object.keys(given)) news[k] = o[k]
    tell()
  }
  function tell(now = false) {                       // at most eight times a second, and always the last
    clearTimeout(timer)
    const wait = now ? 0 : Math.max(0, 125 - (performance.now() - sent))
    timer = setTimeout(() => {
      if (dead || !Object.keys(news).length) return
      sent = performance.now()
      emit('change', news)
      news = {}
    }, wait)
  }
  const reset = () => change({...first, auto_turn: false})
  function fold(shut) {
    folded = shut
    root.classList.toggle('shut', shut)
    panelButton.setAttribute('aria-pressed', !shut)
    resize()
  }
  const whole = () => document.fullscreenElement ? document.exitFullscreen() : host.requestFullscreen()

  // ---- what is loaded
  function load(glb) {
    bytes = glb && (glb.byteLength ?? 0) ? glb : null
    const mine = ++loads
    refiner.again()
    if (!view) return busy
    busy = busy.then(async () => {
      if (mine !== loads || dead) return             // another one is on its way already
      if (!bytes) { view.clear(); hint(); touch(); return }
      try {
        const about = await view.load(bytes, o.fit)
        say(null)
        emit('load', about)
      } catch (e) { view.clear(); say(`This is no GLB file that can be read: ${String(e.message ?? e).split('\n')[0]}.`) }
      touch()
    })
    return busy
  }

  // ---- hands: one pointer orbits (with shift or the right button it moves the lamp), two pinch
  const fingers = new Map()
  const orbit = (dx, dy, lamp) => change(lamp ? {light_azimuth: wrap(o.light_azimuth + dx), light_elevation: Math.max(-90, Math.min(90, o.light_elevation - dy))}
    : {azimuth: wrap(o.azimuth - dx), elevation: o.elevation + dy})
  const zoom = factor => change({distance: o.distance*factor})
  stage.addEventListener('pointerdown', e => {
    if (e.target.closest('.note.on > span')) return
    stage.setPointerCapture(e.pointerId)
    stage.focus({preventScroll: true})
    stage.classList.add('held')
    fingers.set(e.pointerId, [e.clientX, e.clientY])
  })
  stage.addEventListener('pointermove', e => {
    const from = fingers.get(e.pointerId)
    if (!from) return
    const to = [e.clientX, e.clientY], dx = to[0] - from[0], dy = to[1] - from[1]
    if (fingers.size === 1) orbit(dx*.5, dy*.5, e.shiftKey || e.buttons & 2)
    else if (fingers.size === 2) {
      const other = [...fingers].find(([id]) => id !== e.pointerId)[1], far = p => Math.hypot(p[0] - other[0], p[1] - other[1])
      zoom(far(from)/Math.max(1, far(to)))
      orbit(dx*.25, dy*.25, false)
    }
    fingers.set(e.pointerId, to)
  })
  const lift = e => { fingers.delete(e.pointerId); if (!fingers.size) { stage.classList.remove('held'); tell(true) } }
  for (const event of ['pointerup', 'pointercancel']) stage.addEventListener(event, lift)
  stage.addEventListener('contextmenu', e => e.preventDefault())
  stage.addEventListener('dblclick', () => reset())
  stage.addEventListener('wheel', e => {             // a page scrolls on until the viewer was clicked
    if (shadow.activeElement !== stage && !e.ctrlKey && o.height !== null) return
    e.preventDefault()
    zoom(Math.exp(Math.max(-60, Math.min(60, e.deltaY))*(e.ctrlKey ? .01 : .002)))
  }, {passive: false})
  const arrows = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1]}
  root.addEventListener('keydown', e => {
    if (e.ctrlKey || e.metaKey || e.altKey) return
    const on = e.composedPath()[0]
    if (on.getAttribute?.('role') === 'radio' && arrows[e.key]) {
      const all = [...on.parentNode.children], next = all[(all.indexOf(on) + (/Left|Up/.test(e.key) ? -1 : 1) + all.length) % all.length]
      next.click()
      next.focus()
    } else if (on !== stage) return
    else if (arrows[e.key]) orbit(5*arrows[e.key][0]*(e.shiftKey ? 1 : -1), 5*arrows[e.key][1]*(e.shiftKey ? -1 : 1), e.shiftKey)
    else if (e.key === '+' || e.key === '=') zoom(1/1.1)
    else if (e.key === '-') zoom(1.1)
    else if (/^[1-5]$/.test(e.key)) change({mode: MODES[e.key - 1]})
    else if (/^[tlrsf]$/i.test(e.key)) ({t: () => change({auto_turn: !o.auto_turn}), l: () => o.controls && fold(!root.classList.contains('shut')), r: reset, s: shoot, f: whole})[e.key.toLowerCase()]()
    else return
    e.preventDefault()
    e.stopPropagation()
  })
  stage.addEventListener('focus', () => stage.classList.toggle('focus', stage.matches(':focus-visible')))
  stage.addEventListener('blur', () => stage.classList.remove('focus'))

  // ---- pictures
  function render() {
    view.setNerf(...(refiner.picture ?? [null]))
    view.draw({...o, show: shownNow()}, theme())
  }
  async function screenshot() {
    await busy
    if (!view) throw new Error('There is no WebGL, so there is no picture.')
    resize()
    render()                                         // and read at once, before the browser clears it
    return new Promise((done, failed) => canvas.toBlob(b => b ? done(b) : failed(new Error('The browser gave no picture.')), 'image/png'))
  }
  const shoot = () => screenshot().then(b => download(b, fileName(o.title) + '.png'), e => say(e.message))
  function resize() {
    const {width, height} = stage.getBoundingClientRect()
    const all = root.getBoundingClientRect().width
    if (!width || !height) return
    const wide = all >= 640
    if (o.controls && (wide !== root.classList.contains('wide') || folded === null)) {
      root.classList.toggle('wide', wide)
      if (folded === null) { fold(!wide || o.height !== null && o.height < 300); return }
    }
    if (view) view.size(Math.max(1, Math.round(width)), Math.max(1, Math.round(height)), Math.min(2, devicePixelRatio || 1))
    label()
    touch()
  }
  function frame(now) {
    if (dead) return
    requestAnimationFrame(frame)
    if (!view || !seen) { last = now; return }
    if (o.auto_turn && !fingers.size) {
      o.azimuth = wrap(o.azimuth + o.turn_speed*Math.min(.1, (now - last)/1000))
      if (now - sent > 1000) { news.azimuth = o.azimuth; tell() }
      touch()
    }
    last = now
    if (shownNow() !== 'mesh') refiner.want(o, ...(o.show === 'both' ? view.width >= view.height ? [view.width/2, view.height] : [view.width, view.height/2] : [view.width, view.height]))
    if (!dirty) return
    dirty = false
    render()
    emit('frame', now)
  }
  const watch = new ResizeObserver(resize)
  watch.observe(stage)
  const inSight = new IntersectionObserver(es => { seen = es[es.length - 1].isIntersecting; touch() })
  inSight.observe(host)
  const themes = new MutationObserver(show)
  for (const e of [document.body, document.documentElement]) themes.observe(e, {attributes: true})
  const system = matchMedia('(prefers-color-scheme: dark)')
  system.addEventListener('change', show)
  canvas.addEventListener('webglcontextlost', e => { e.preventDefault(); if (!dead) say('The browser took the 3D picture away, as it does when too many are open: reload to get it back.') })
  canvas.addEventListener('webglcontextrestored', () => { say(null); touch() })

  refiner.ask = options.ask ?? null
  thumbs()
  show()
  resize()
  surround()
  load(glb)
  requestAnimationFrame(frame)

  return {
    set, load, screenshot,
    get: () => ({...o}),
    on: (event, f) => { (listeners[event] ??= []).push(f) },
    askBy: ask => { refiner.ask = ask; refiner.again(); show() },
    refresh: () => { refiner.again(); touch() },
    ready: () => busy,
    dispose: () => {
      dead = true
      clearTimeout(timer)
      for (const w of [watch, inSight, themes]) w.disconnect()
      system.removeEventListener('change', show)
      refiner.ask = null
      view?.dispose()
      host.remove()
    },
  }
}
