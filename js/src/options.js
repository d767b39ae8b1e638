// Everything that a viewer can be told, with what holds if nobody says; the names are those of the Python traits
export const DEFAULTS = {
  mode: 'shaded',            // one of MODES
  show: 'mesh',              // 'mesh', 'nerf' or 'both': the last two need somebody who renders the NeRF
  light_azimuth: -35,        // degrees; 0 is in front of the object (+Z), growing towards +X
  light_elevation: 40,       // degrees
  light_colour: '#ffffff',
  light_intensity: 0.7,      // of the lamp, 0 to 3
  ambient: 0.4,              // of the light from everywhere, 0 to 2
  environment: 'none',       // 'none', one of environments.json, or 'picture'
  environment_picture: null, // bytes of a PNG or JPEG of the whole sphere, or its data: address
  background: 'auto',        // 'auto': the environment if there is one, else the theme's; or a colour such as '#204060'
  auto_turn: false,          // go round
  turn_speed: 20,            // degrees per second
  azimuth: 30,               // of the camera, degrees
  elevation: 15,             // degrees
  distance: 2.75,            // scene units
  fit: true,                 // move and scale what is loaded into the unit sphere; false: scene units as they are
  theme: 'auto',             // 'auto', 'light' or 'dark'
  controls: true,            // bars with buttons and sliders
  height: 420,               // pixels
  title: '',                 // what is shown, for those who cannot see it and for file names
}
export const MODES = ['shaded', 'albedo', 'textureless', 'normals', 'wireframe']
export const SHOWS = ['mesh', 'nerf', 'both']
export const LIMITS = {light_elevation: [-90, 90], light_intensity: [0, 3], ambient: [0, 2], elevation: [-89.9, 89.9], distance: [1.2, 12], turn_speed: [-180, 180], height: [120, 4000]}

export const wrap = degrees => ((degrees + 180) % 360 + 360) % 360 - 180

// Only what is known and sane gets in: a page's settings may come from anywhere
export function accept(given, environments) {
  const good = {}
  for (const [key, value] of Object.entries(given ?? {})) {
    if (!(key in DEFAULTS) || value === undefined) continue
    const like = DEFAULTS[key]
    if (typeof like === 'number') {
      if (!Number.isFinite(value)) continue
      const [low, high] = LIMITS[key] ?? [-Infinity, Infinity]
      good[key] = Math.min(high, Math.max(low, /azimuth/.test(key) ? wrap(value) : value))
    } else if (typeof like === 'boolean') good[key] = Boolean(value)
    else if (key === 'mode') { if (MODES.includes(value)) good[key] = value }
    else if (key === 'show') { if (SHOWS.includes(value)) good[key] = value }
    else if (key === 'environment') { if (['none', 'picture', ...environments].includes(value)) good[key] = value }
    else if (key === 'light_colour' || key === 'background') { if (/^#[\da-f]{6}$/i.test(value) || key === 'background' && value === 'auto') good[key] = value }
    else good[key] = value
  }
  return good
}
