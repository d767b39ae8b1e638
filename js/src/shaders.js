// Light as in the package: colours stay as they are stored in a PNG, and are multiplied by ambient + lamp max(0, n . l).
// So a mesh here and a NeRF rendered in Python agree under the same lamp.
const sphere = `
vec2 sphere(vec3 d) { return vec2(atan(d.z, d.x)/6.283185307179586 + .5, acos(clamp(d.y, -1., 1.))/3.141592653589793); }`

export const surfaceVertex = `
varying vec3 vNormal;
varying vec2 vAt;
varying vec3 vTint;
void main() {
  vNormal = transpose(inverse(mat3(modelMatrix)))*normal;
  vAt = uv;
  vTint = vec3(1.);
  #if defined(USE_COLOR) || defined(USE_COLOR_ALPHA)
  vTint = color.rgb;
  #endif
  gl_Position = projectionMatrix*viewMatrix*modelMatrix*vec4(position, 1.);
}`

export const surfaceFragment = `
varying vec3 vNormal;
varying vec2 vAt;
varying vec3 vTint;
uniform int mode;
uniform vec3 tint;
uniform sampler2D picture;
uniform bool pictured;
uniform vec3 toward;
uniform vec3 lamp;
uniform float ambient;
uniform sampler2D around;
uniform bool surrounded;
${sphere}
vec3 stored(vec3 c) { return mix(c*12.92, 1.055*pow(max(c, vec3(.0031308)), vec3(1./2.4)) - .055, step(vec3(.0031308), c)); }
void main() {
  vec3 n = normalize(vNormal)*(gl_FrontFacing ? 1. : -1.);
  vec3 albedo = tint*vTint;
  if (pictured) albedo *= texture2D(picture, vAt).rgb;
  albedo = stored(clamp(albedo, 0., 1.));
  vec3 everywhere = surrounded ? textureLod(around, sphere(n), 0.).rgb : vec3(1.);
  vec3 factor = ambient*everywhere + lamp*max(dot(n, toward), 0.);
  vec3 colour = mode == 1 ? albedo : mode == 2 ? factor : mode == 3 ? .5*n + .5 : albedo*factor;
  gl_FragColor = vec4(clamp(colour, 0., 1.), 1.);
}`

// One triangle over the whole picture: the background, or the NeRF's own picture
export const screenVertex = `
varying vec2 vScreen;
void main() { vScreen = position.xy; gl_Position = vec4(position.xy, 1., 1.); }`

export const backdropFragment = `
varying vec2 vScreen;
uniform vec3 inner;
uniform vec3 outer;
uniform bool surrounded;
uniform sampler2D sky;
uniform mat3 turned;
uniform vec2 slope;
${sphere}
void main() {
  vec3 colour = mix(inner, outer, smoothstep(.1, 1.5, length(vScreen - vec2(0., .1))));
  if (surrounded) colour = textureLod(sky, sphere(normalize(turned*vec3(vScreen*slope, -1.))), 0.).rgb;
  gl_FragColor = vec4(colour, 1.);
}`

export const nerfFragment = `
varying vec2 vScreen;
uniform sampler2D picture;
void main() { gl_FragColor = texture2D(picture, vec2(.5 + .5*vScreen.x, .5 - .5*vScreen.y)); }`
