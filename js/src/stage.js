// The picture itself: what is loaded, its light, its background, the camera, and the NeRF's picture beside it
import {Box3, BufferAttribute, BufferGeometry, Color, CustomBlending, DataTexture, DoubleSide, Group, LinearFilter, LoadingManager, Matrix3, Mesh, MeshBasicMaterial, NoColorSpace,
  OneFactor, OneMinusSrcAlphaFactor, PerspectiveCamera, RGBAFormat, Scene, ShaderMaterial, SRGBColorSpace, Vector2, Vector3, WebGLRenderer} from 'three'
import {GLTFLoader} from 'three/examples/jsm/loaders/GLTFLoader.js'
import {direction, named, pictured} from './environments.js'
import {MODES} from './options.js'
import {backdropFragment, nerfFragment, screenVertex, surfaceFragment, surfaceVertex} from './shaders.js'

const FOCAL = 1.3                                   // in widths of the picture's shorter side, as `orbit` in Python
export const THEMES = {light: ['#fbfbfc', '#dfe2e8'], dark: ['#343841', '#15171b']}
const plain = css => { const c = new Color().setStyle(css, SRGBColorSpace); c.convertLinearToSRGB(); return c }
const screen = () => new BufferGeometry().setAttribute('position', new BufferAttribute(new Float32Array([-1, -1, 0, 3, -1, 0, -1, 3, 0]), 3))
const full = (fragmentShader, uniforms, more) => {
  const mesh = new Mesh(screen(), new ShaderMaterial({vertexShader: screenVertex, fragmentShader, uniforms, depthTest: false, depthWrite: false, ...more}))
  mesh.frustumCulled = false
  return mesh
}

export class Stage {
  constructor(canvas) {
    this.renderer = new WebGLRenderer({canvas, antialias: true, powerPreference: 'low-power'})
    this.renderer.autoClear = false
    this.camera = new PerspectiveCamera(42, 1, .05, 60)
    this.light = {mode: {value: 0}, toward: {value: new Vector3()}, lamp: {value: new Vector3()}, ambient: {value: 0}, around: {value: null}, surrounded: {value: false}}
    this.back = {inner: {value: new Color()}, outer: {value: new Color()}, surrounded: {value: false}, sky: {value: null}, turned: {value: new Matrix3()}, slope: {value: new Vector2()}}
    this.nerf = {picture: {value: null}}
    this.behind = new Scene().add(full(backdropFragment, this.back))
    this.overlay = new Scene().add(full(nerfFragment, this.nerf, {transparent: true, blending: CustomBlending, blendSrc: OneFactor, blendDst: OneMinusSrcAlphaFactor, premultipliedAlpha: true}))
    this.scene = new Scene()
    this.object = null
    this.kept = {}                                  // environments that were made already
  }

  // A GLB into the scene; throws a sentence if it is none
  async load(glb, fit) {
    const bytes = glb instanceof ArrayBuffer ? glb : glb.buffer.slice(glb.byteOffset, glb.byteOffset + glb.byteLength)
    const manager = new LoadingManager()
    manager.setURLModifier(address => /^(blob|data):/.test(address) ? address : 'data:,')   // a file from a stranger fetches nothing
    const {scene} = await new GLTFLoader(manager).parseAsync(bytes, '')
    const object = new Group().add(scene), meshes = []
    scene.traverse(o => { if (o.isMesh) meshes.push(o) })
    if (!meshes.length) throw new Error('it has no surface')
    object.updateMatrixWorld(true)
    this.clear()
    let triangles = 0
    for (const m of meshes) {
      if (!m.geometry.attributes.normal) m.geometry.computeVertexNormals()
      const old = m.material, map = old.map ?? null
      if (map) this.renderer.initTexture(map)
      m.material = new ShaderMaterial({vertexShader: surfaceVertex, fragmentShader: surfaceFragment, side: DoubleSide, vertexColors: Boolean(m.geometry.attributes.color),
        uniforms: {...this.light, tint: {value: old.color ?? new Color(1, 1, 1)}, picture: {value: map}, pictured: {value: Boolean(map)}}})
      const wires = new Mesh(m.geometry, new MeshBasicMaterial({wireframe: true, transparent: true, toneMapped: false}))
      wires.visible = false
      wires.renderOrder = 1
      m.userData.wires = wires
      m.add(wires)
      const own = (m.geometry.index ?? m.geometry.attributes.position).count/3
      wires.material.opacity = Math.max(.25, Math.min(.9, 60/Math.sqrt(own)))    // a fine net would hide everything
      triangles += own
      old.dispose?.()
    }
    const box = new Box3().setFromObject(object)
    if (fit) {
      const middle = box.getCenter(new Vector3()), scale = .9/Math.max(1e-9, radius(meshes, middle))
      object.scale.setScalar(scale)
      object.position.copy(middle).multiplyScalar(-scale)
    }
    object.updateMatrixWorld(true)
    this.object = object
    this.meshes = meshes
    this.scene.add(object)
    return {triangles: Math.round(triangles)}
  }

  clear() {
    if (!this.object) return
    this.scene.remove(this.object)
    for (const m of this.meshes) {
      m.geometry.dispose()
      m.material.uniforms.picture.value?.dispose()
      m.material.dispose()
      m.userData.wires.material.dispose()
    }
    this.object = null
  }

  // Which surroundings; a picture of one's own may take a moment
  async surround(name, picture) {
    const key = name === 'picture' ? picture : name
    if (name === 'none' || !key) this.environment = null
    else {
      if (!this.kept[name] || this.kept[name].key !== key) {
        const made = name === 'picture' ? await pictured(picture) : named(name)
        if (this.kept[name]) for (const t of ['sky', 'light']) this.kept[name][t].dispose()
        this.kept[name] = {...made, key}
      }
      this.environment = this.kept[name]
    }
  }

  setNerf(pixels, width, height) {                  // premultiplied RGBA, rows from the top
    const old = this.nerf.picture.value
    if (pixels && old?.image.width === width && old.image.height === height) { old.image.data.set(pixels); old.needsUpdate = true; return }
    old?.dispose()
    this.nerf.picture.value = null
    if (!pixels) return
    const t = new DataTexture(new Uint8Array(pixels), width, height, RGBAFormat)
    Object.assign(t, {minFilter: LinearFilter, magFilter: LinearFilter, colorSpace: NoColorSpace, needsUpdate: true})
    this.nerf.picture.value = t
  }

  size(width, height, ratio) {
    this.renderer.setPixelRatio(ratio)
    this.renderer.setSize(width, height, false)
    this.width = width
    this.height = height
  }

  draw(o, theme) {
    if (this.renderer.getContext().isContextLost()) return
    const u = this.light, lamp = plain(o.light_colour)
    u.mode.value = MODES.indexOf(o.mode)
    u.toward.value.set(...direction(o.light_azimuth, o.light_elevation))
    u.lamp.value.set(lamp.r, lamp.g, lamp.b).multiplyScalar(o.light_intensity)
    u.ambient.value = o.ambient
    u.surrounded.value = Boolean(this.environment)
    u.around.value = this.environment?.light ?? null
    const auto = o.background === 'auto'
    this.back.surrounded.value = auto && Boolean(this.environment)
    this.back.sky.value = this.environment?.sky ?? null
    this.back.inner.value.copy(plain(auto ? THEMES[theme][0] : o.background))
    this.back.outer.value.copy(plain(auto ? THEMES[theme][1] : o.background))
    if (this.object) for (const m of this.meshes) {
      const wired = o.mode === 'wireframe'
      m.userData.wires.visible = wired
      m.userData.wires.material.color.set(theme === 'dark' ? '#ffb066' : '#1f3a5f')
      m.material.polygonOffset = wired
      m.material.polygonOffsetFactor = m.material.polygonOffsetUnits = wired ? 1 : 0
      if (wired) u.mode.value = 0
    }
    const both = o.show === 'both', pieces = both && this.width >= this.height ? [[0, 0, .5, 1], [.5, 0, .5, 1]] : both ? [[0, .5, 1, .5], [0, 0, 1, .5]] : [[0, 0, 1, 1]]
    this.renderer.setScissorTest(true)
    pieces.forEach(([x, y, w, h], i) => {
      const box = [x*this.width, y*this.height, w*this.width, h*this.height]
      this.renderer.setViewport(...box)
      this.renderer.setScissor(...box)
      this.aim(o, box[2], box[3])
      this.renderer.clear()
      this.renderer.render(this.behind, this.camera)
      if (o.show === 'nerf' || i === 1) { if (this.nerf.picture.value) this.renderer.render(this.overlay, this.camera) }
      else this.renderer.render(this.scene, this.camera)
    })
  }

  aim(o, width, height) {
    const short = Math.min(width, height), c = this.camera
    this.back.slope.value.set(width/short/(2*FOCAL), height/short/(2*FOCAL))
    c.fov = 2*Math.atan(this.back.slope.value.y)*180/Math.PI
    c.aspect = width/height
    c.updateProjectionMatrix()
    c.position.set(...direction(o.azimuth, o.elevation)).multiplyScalar(o.distance)
    c.up.set(...direction(o.azimuth, o.elevation + 90))
    c.lookAt(0, 0, 0)
    c.updateMatrixWorld()
    this.back.turned.value.setFromMatrix4(c.matrixWorld)
  }

  dispose() {
    this.clear()
    this.setNerf(null)
    for (const e of Object.values(this.kept)) { e.sky.dispose(); e.light.dispose() }
    this.renderer.dispose()
    this.renderer.forceContextLoss()
  }
}

function radius(meshes, middle) {                   // of the sphere around `middle` that holds every vertex
  const v = new Vector3()
  let most = 0
  for (const m of meshes) for (let i = 0, p = m.geometry.attributes.position; i < p.count; i++) most = Math.max(most, v.fromBufferAttribute(p, i).applyMatrix4(m.matrixWorld).distanceTo(middle))
  return most
}
