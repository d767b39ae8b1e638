"Lights, compositions and scene files: dull numbers, gradients, bad input that no reader needs"
import json, math
import pytest
import torch
import torch.nn.functional as F
from dreamfusion_nb import cli
from dreamfusion_nb.cameras import Rays, orbit
from dreamfusion_nb.generate import FIELDS, Scene, Settings
from dreamfusion_nb.rendering import render
from dreamfusion_nb.runs import RunFolder
from dreamfusion_nb import __version__
from dreamfusion_nb.scenes import (Composition, Placed, SceneFile, SceneObject, ambient_light, directional_light, environment_light, irradiance, light_from, look_at_scene, look_up, merged,
                                   numbers, object_mesh, place_panel, point_light, read_environment, relight, scene_cameras, shrink, sphere_map, survey, tint, turn)
from dreamfusion_nb.shapeworld import as_field
from dreamfusion_nb.utils import UserError, seeded

def even(density, colour=(1., 1., 1.)):
    return lambda y, var=None: (torch.full(y.shape[:-1], density), torch.tensor(colour).expand(y.shape))

def random_points(n=200, seed=0): return torch.randn(n, 3, generator=seeded(seed))

# ---- lights

def test_the_map_is_read_where_it_was_written():
    d, _ = sphere_map(16)
    picture = torch.rand(3, 16, 32, generator=seeded(0))
    assert torch.allclose(look_up(picture, d), picture.movedim(0, -1), atol=1e-4)       # at the middles of the texels
    assert torch.allclose(look_up(picture, 7*d), look_up(picture, d), atol=1e-4)        # only the direction counts

def test_shrinking_keeps_the_light():
    picture = torch.rand(3, 96, 192, generator=seeded(1))
    def total(p): return (p*sphere_map(p.shape[1])[1]).sum((1, 2))
    assert torch.allclose(total(shrink(picture, 24)), total(picture), rtol=1e-5)
    assert shrink(picture, 96) is picture

def test_irradiance_by_monte_carlo():
    picture = torch.rand(3, 8, 16, generator=seeded(2))
    normal = F.normalize(random_points(3), dim=-1)
    w = F.normalize(random_points(200_000, 3), dim=-1)                                  # uniform on the sphere: the mean times 4 pi, divided by pi
    u, v = ((torch.atan2(w[:, 2], w[:, 0])/(2*math.pi) + .5)*16).long().clamp(0, 15), ((.5 - w[:, 1].asin()/math.pi)*8).long().clamp(0, 7)
    drawn = 4*((normal@w.T).clamp(min=0)[..., None]*picture[:, v, u].T).mean(1)
    fine = picture.repeat_interleave(16, 1).repeat_interleave(16, 2)                    # the same sky, each texel cut into 256
    assert torch.allclose(irradiance(fine, normal), drawn, atol=.01)
    assert torch.allclose(environment_light(fine)(normal, normal), drawn, atol=.02)

def test_lights_take_no_light_away():
    normal, x = F.normalize(random_points(), dim=-1), random_points(seed=4)
    for light in (point_light((1, 2, 3)), point_light((1, 2, 3), reach=1), directional_light((0, -1, 0), (1, .5, 0)), ambient_light((.1, 0, 1)), environment_light(torch.rand(3, 8, 16))):
        factor = light(normal, x)
        assert factor.shape == x.shape and factor.min() >= 0
    with pytest.raises(UserError, match='normals'): relight([ambient_light()])(x, None, x, None)

@pytest.mark.parametrize('bad', [True, None, 'a', [1, 2], [1, 2, float('nan')], [1, 2, True], {}, [[1], 2, 3]])
def test_numbers_are_numbers(bad):
    with pytest.raises(UserError): numbers(bad, 'position')
    with pytest.raises(UserError): tint(bad if bad is not True else 'b')

def test_environment_files(tmp_path):
    from PIL import Image
    Image.new('L', (8, 4), 51).save(tmp_path/'grey.png')
    assert torch.allclose(read_environment(tmp_path/'grey.png'), torch.tensor(.2))      # grey becomes three channels
    (tmp_path/'cut.png').write_bytes((tmp_path/'grey.png').read_bytes()[:50])
    for bad in (tmp_path/'cut.png', tmp_path, tmp_path/'none.png', torch.ones(8, 16), torch.full((3, 4, 8), float('inf')), torch.ones(3, 0, 0)):
        with pytest.raises(UserError): read_environment(bad)

# ---- composition

def test_a_scene_of_one_is_the_object_itself():
    duck = as_field('duck', 'yellow')
    x = F.normalize(random_points(), dim=-1)*.7
    density, albedo = Composition([Placed(duck)])(x.view(20, 10, 3))
    assert torch.allclose(density.view(-1), duck(x)[0], rtol=1e-5)
    dense = duck(x)[0] > 1e-6
    assert torch.allclose(albedo.view(-1, 3)[dense], duck(x)[1][dense], atol=1e-5)

def test_opacity_does_not_depend_on_scale_and_variance_is_scaled():
    told = []
    def fog(y, var): told.append(var); return torch.full(y.shape[:1], .4), torch.ones_like(y)
    for s in (.25, 1., 3.):
        scene = Composition([Placed(fog, scale=s)])
        ray = Rays(torch.tensor([[0., 0, 9]]), torch.tensor([[0., 0, -1]]))
        assert render(scene, ray, 64, scene.radius, var=.5).opacity.item() == pytest.approx(1 - math.exp(-.8), abs=1e-5)
    assert told == [.5/s**2 for s in (.25, 1., 3.)]

def test_nothing_is_asked_where_nothing_is():
    def never(y, var=None): raise AssertionError('asked')
    scene = Composition([Placed(never, (5., 0, 0)), Placed(even(1.))])
    density, albedo = scene(torch.tensor([[0., 0, 0], [0., 9, 0]]))
    assert density.tolist() == [1., 0.] and albedo.isfinite().all()
    assert scene.occupied(torch.tensor([[5., .9, 0], [3., 0, 0], [0., 0, .5]])).tolist() == [True, False, True]

def test_the_sphere_of_the_scene_holds_everything():
    objects = [Placed(even(1.), tuple(p.tolist()), 30., s) for p, s in zip(random_points(5), (.3, .5, 1., 1.5, 2.))]
    scene = Composition(objects)
    for o in objects: assert (o.to_scene(F.normalize(random_points(), dim=-1)) - scene.centre).norm(dim=-1).max() <= scene.radius + 1e-5

def test_gradients_reach_every_field():
    fields = [FIELDS['grid'](seeded(i)) for i in range(2)]
    scene = Composition([Placed(fields[0], (.2, 0, 0), 20.), Placed(fields[1], (-.2, 0, 0), scale=.8)])
    density, albedo = scene(random_points()*.3)
    (density.sum() + albedo.sum()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for f in fields for p in f.parameters())

def test_a_survey_loses_nothing_and_leaves_the_placing():
    o = Placed(as_field('cone', 'red', edge=.01), (1., 2, 3), 40., .5)
    seen = survey(o)
    assert (seen.position, seen.yaw, seen.scale) == (o.position, o.yaw, o.scale) and seen.radius <= 1 and seen.map.fraction < .5
    x = o.to_scene(F.normalize(random_points(2000), dim=-1)*torch.rand(2000, 1, generator=seeded(5)))
    assert (Composition([o]).density(x) - Composition([seen]).density(x)).abs().max() < .05/.5
    assert survey(Placed(even(0.))).radius == 1                                       # nothing there: nothing to go by

def test_turning_the_object_is_turning_the_camera_the_other_way():
    mug = as_field('mug', 'red')
    a = look_at_scene(Composition([Placed(mug, yaw=50.)]), orbit(torch.tensor([50.]), 20.), 32, samples=48)
    b = look_at_scene(Composition([Placed(mug)]), orbit(torch.tensor([0.]), 20.), 32, samples=48)
    assert torch.allclose(a.rgb, b.rgb, atol=1e-3)
    assert torch.allclose(turn(20)@turn(30), turn(50), atol=1e-6)

def test_strips_do_not_show():
    scene = Composition([Placed(as_field('ball', 'red'), (3., 1, 0))])
    eye = scene_cameras(scene, torch.tensor([90.]))
    whole, cut = (look_at_scene(scene, eye, 24, [ambient_light()], lambda d: d*.5 + .5, n) for n in (2**21//24**2, 2**21//24**2 + 20))   # one strip, and a bit more than one
    assert whole.rgb.shape == (1, 24, 24, 3) and torch.allclose(whole.rgb, cut.rgb, atol=.01)

def test_many_samples_of_fog_keep_its_colour():
    fog = Composition([Placed(even(.2, (1., .5, 0)))])
    few, many = (look_at_scene(fog, orbit(torch.tensor([0.]), 0., 3.), 8, [ambient_light()], 0., n).rgb[0, 4, 4] for n in (64, 512))
    assert torch.allclose(few, many, atol=.02) and few[0] > .3

def test_merged_meshes_stand_apart():
    ball = Placed(as_field('ball', 'red', edge=.01), name='ball')
    meshes = [object_mesh(Placed(ball.field, (3*i, 0, 0), scale=.5), 32) for i in (-1., 1.)]
    both = merged(meshes)
    assert len(both.faces) == 2*len(meshes[0].faces) and both.faces.max() == len(both.vertices) - 1
    assert (both.vertices[:, 0].abs() > 2).all()
    with pytest.raises(UserError): merged([])

# ---- files and the command

def run_folder(path):
    "A finished run without the running: a soft ball in a grid"
    path.mkdir(parents=True)
    field = FIELDS['grid'](seeded(0))
    axis = torch.linspace(-1, 1, 64)
    inside = (axis[:, None, None]**2 + axis[:, None]**2 + axis**2).sqrt() < .5
    field.levels[-1].data[0, 0] = torch.where(inside, 5., -5.)
    Scene(field, 'a ball', Settings(), 0).save(path/'scene.safetensors')
    RunFolder(path).write({'version': __version__, 'settings': {}, 'prompt': 'a ball', 'state': 'finished'}, path)
    return path

def test_a_scene_file_survives_saving_elsewhere(tmp_path):
    scene = SceneFile([SceneObject(str(tmp_path/'runs/x'), (1., 2, 3), 45., .5)], [{'kind': 'ambient', 'colour': [1, .5, 0]}], str(tmp_path/'sky.png'), (.1, .2, .3))
    (tmp_path/'deep/er').mkdir(parents=True)
    scene.save(tmp_path/'deep/er/scene.json')
    text = (tmp_path/'deep/er/scene.json').read_text()
    assert str(tmp_path) not in text and '../../runs/x' in text
    again = SceneFile.load(tmp_path/'deep/er/scene.json')
    assert again.objects[0].position == (1., 2., 3.) and again.objects[0].run.endswith('runs/x')
    assert list(again.background) == [.1, .2, .3] and light_from(again.lights[0])(torch.ones(1, 3), torch.ones(1, 3)).tolist() == [[1., .5, 0.]]

def test_compose_goes_on_without_what_is_broken(tmp_path, capsys):
    run_folder(tmp_path/'ball')
    scene = {'objects': [{'run': 'ball'}, {'run': 'nothing'}], 'environment': 'nowhere.png'}
    (tmp_path/'s.json').write_text(json.dumps(scene))
    assert cli.main(['compose', str(tmp_path/'s.json'), '--size', '16']) == 1
    said = capsys.readouterr()
    assert 'object 2' in said.err and 'nowhere.png' in said.err and 'Traceback' not in said.err
    assert {'views.png', 'turntable.gif', 'scene.glb', 'scene.json'} <= {p.name for p in (tmp_path/'s').iterdir()}
    scene['objects'].pop(); scene.pop('environment')
    (tmp_path/'s.json').write_text(json.dumps(scene))
    assert cli.main(['compose', str(tmp_path/'s.json'), '--size', '16']) == 1           # not by accident
    assert cli.main(['compose', str(tmp_path/'s.json'), '--size', '16', '--overwrite']) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ['ball', 's', 's.json']        # nothing is left behind

def test_a_folder_of_somebody_else_is_left_alone(tmp_path):
    run_folder(tmp_path/'ball')
    (tmp_path/'s.json').write_text(json.dumps({'objects': [{'run': 'ball'}]}))
    (tmp_path/'holiday').mkdir()
    (tmp_path/'holiday/scene.json').write_text('{}')
    assert cli.main(['compose', str(tmp_path/'s.json'), '--out', str(tmp_path/'holiday'), '--overwrite']) == 1
    assert cli.main(['compose', str(tmp_path/'s.json'), '--out', str(tmp_path/'ball'), '--overwrite']) == 1
    assert (tmp_path/'holiday/scene.json').read_text() == '{}' and (tmp_path/'ball/scene.safetensors').exists()

def test_the_panel_moves_things():
    pytest.importorskip('ipywidgets')
    o = Placed(as_field('ball', 'red'), name='<a> & b')
    panel = place_panel([o], 16, samples=24)
    before = bytes(panel.picture.value)
    panel.sliders[0, 'scale'].value = .5
    assert o.scale == .5 and bytes(panel.picture.value) != before and before[:4] == b'\x89PNG'
    panel.sliders['camera', 'azimuth'].value = 90.
    assert o.scale == .5
