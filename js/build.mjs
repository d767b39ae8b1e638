// npm ci && npm run build: writes what ships with the package; the same source gives the same bytes
import {build} from 'esbuild'
import {copyFileSync, readFileSync} from 'node:fs'

const out = process.argv[2] ?? '../dreamfusion_nb/static'
const notice = `/*! The viewer of dreamfusion_nb (Apache-2.0). It holds three.js:\n${readFileSync('node_modules/three/LICENSE', 'utf8').trim()}\n*/`
await build({entryPoints: ['src/viewer.js'], outfile: `${out}/viewer.js`, format: 'iife', bundle: true, minify: true, target: 'es2020', charset: 'utf8', legalComments: 'none', banner: {js: notice},
  loader: {'.css': 'text'}, logLevel: 'info'})
copyFileSync('src/environments.json', `${out}/environments.json`)   // Python paints the same skies
