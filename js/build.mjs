// npm ci && npm run build: writes what ships with the package; the same source gives the same bytes
import {build} from 'esbuild'
import {copyFileSync, readFileSync} from 'node:fs'

const out = process.argv[2] ?? '../dreamfusion_nb/static'
const notice = `/*! The viewer of dreamfusion_nb (Apache-2.0). It holds three.js:\n${readFileSync('node_modules/three/LICENSE', 'utf8').trim()}\n*/`
const common = {bundle: true, minify: true, target: 'es2020', charset: 'utf8', legalComments: 'none', banner: {js: notice}, loader: {'.css': 'text'}, logLevel: 'info'}
await build({...common, entryPoints: ['src/widget.js'], format: 'esm', outfile: `${out}/viewer.js`})
await build({...common, entryPoints: ['src/page.js'], format: 'iife', outfile: `${out}/page.js`})
copyFileSync('src/environments.json', `${out}/environments.json`)   // Python paints the same skies
