// All that ships: DreamViewer.mount(element, glb, options) for any page, DreamViewer.render for a widget in a notebook
import {mount} from './mount.js'
import {DEFAULTS} from './options.js'
import {NAMES, irradiance, paint} from './environments.js'
import {decode, mountPage} from './standalone.js'
import {render} from './widget.js'

globalThis.DreamViewer = {mount, mountPage, render, decode, defaults: DEFAULTS, environments: NAMES, paint, irradiance}
