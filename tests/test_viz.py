import matplotlib
matplotlib.use('Agg')
import matplotlib.pyplot as plt
import numpy as np
import pytest, torch
from PIL import Image
from dreamfusion_nb.utils import UserError, seeded
from dreamfusion_nb.viz import STAGES, depth_image, normal_image, pipeline_strip, save_gif, save_png, sheet, show_images, to_uint8

@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close('all')

def pictures(*shape): return torch.rand(*shape, generator=seeded(0))

def test_bytes_come_back():
    levels = torch.arange(256)/255
    assert (to_uint8(levels.expand(2, 3, 1, -1))[1, 0, :, 2] == np.arange(256)).all()

def test_to_uint8_takes_what_training_has():
    image = pictures(3, 4, 5).requires_grad_()
    assert to_uint8(image).shape == (4, 5, 3) and to_uint8(image.half()).dtype == np.uint8

@pytest.mark.parametrize('images, columns, axes', [(pictures(3, 3, 8, 8), None, 3), (pictures(10, 8, 8), None, 16), (pictures(4, 3, 8, 12), 2, 4),
                                                   ([pictures(8, 8).numpy(), pictures(3, 8, 8)], None, 2)])
def test_show_images(images, columns, axes):
    show_images(images, titles=['x']*len(images), columns=columns)
    assert len(plt.gcf().axes) == axes and sum(len(a.images) for a in plt.gcf().axes) == len(images)

def test_sheet_of_one():
    one = pictures(1, 3, 5, 7)
    assert torch.equal(sheet([one]), one[0])

def test_png_and_gif(tmp_path):
    frames = pictures(5, 3, 16, 16)
    save_png(frames[0], tmp_path/'a.png')
    assert (np.asarray(Image.open(tmp_path/'a.png')) == to_uint8(frames[0])).all()
    for fps, milliseconds in ((12, 80), (25, 40), (1000, 20)):
        save_gif(frames, tmp_path/'a.gif', fps)
        film = Image.open(tmp_path/'a.gif')
        assert (film.n_frames, film.info['duration'], film.info['loop']) == (5, milliseconds, 0)
    save_gif(frames[:1], tmp_path/'one.gif')
    assert {p.name for p in tmp_path.iterdir()} == {'a.png', 'a.gif', 'one.gif'}

def test_depth_of_nothing_is_white():
    assert (depth_image(torch.full((2, 4, 4), 3.), torch.zeros(2, 4, 4)) == 1).all()

def test_depth_shares_one_scale():
    depth = torch.tensor([1., 2.])[:, None, None].expand(2, 4, 4)
    both = depth_image(depth, torch.ones(2, 4, 4))
    assert both.shape == (2, 3, 4, 4) and both[0].max() < .11 < .84 < both[1].min()

def test_normals_of_nothing_are_white():
    assert (normal_image(torch.zeros(2, 4, 4, 3), torch.zeros(2, 4, 4)) == 1).all()

@pytest.mark.parametrize('current', [None, [], 'mesh', ['prior', 'sds'], STAGES])
def test_strip(current): pipeline_strip(current)

def test_strip_of_an_unknown_stage():
    with pytest.raises(UserError, match='nowhere'): pipeline_strip('nowhere')
