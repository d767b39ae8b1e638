// For a page without a kernel: DreamViewer.mount(element, glb, options)
import {mount} from './mount.js'
import {DEFAULTS} from './options.js'
import {NAMES, irradiance, paint} from './environments.js'
import {decode, mountPage} from './standalone.js'

globalThis.DreamViewer = {mount, mountPage, decode, defaults: DEFAULTS, environments: NAMES, paint, irradiance}
