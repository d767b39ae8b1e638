import os
import pytest, torch
from dreamfusion_nb.utils import UserError, check_points, seeded, write_atomic

def test_write_makes_folders_and_keeps_permissions_usual(tmp_path):
    path = write_atomic(tmp_path/'a'/'b'/'c.txt', lambda p: p.write_text('hello'))
    (tmp_path/'plain.txt').write_text('')
    assert path.read_text() == 'hello' and path.stat().st_mode == (tmp_path/'plain.txt').stat().st_mode

@pytest.mark.parametrize('name', ['x', 'x.tar.gz', '.hidden', 'with space.png'])
def test_temporary_name_keeps_the_ending(tmp_path, name):
    seen = []
    write_atomic(tmp_path/name, lambda p: (seen.append(p), p.write_text('')))
    assert seen[0].name.endswith(name) and seen[0].name != name and os.listdir(tmp_path) == [name]

@pytest.mark.parametrize('error', [ValueError, KeyboardInterrupt])
def test_failed_write_leaves_what_was_there(tmp_path, error):
    def fail(p):
        p.write_text('half')
        raise error
    for before in ([], ['old']):
        if before: (tmp_path/'f').write_text('old')
        with pytest.raises(error): write_atomic(tmp_path/'f', fail)
        assert [p.read_text() for p in tmp_path.iterdir()] == before

def test_writer_that_writes_nothing_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError): write_atomic(tmp_path/'f', lambda p: None)
    assert not list(tmp_path.iterdir())

def test_str_path(tmp_path):
    assert write_atomic(str(tmp_path/'f'), lambda p: p.write_text('x')).read_text() == 'x'

@pytest.mark.parametrize('seed', [-1, 2**63, 1., '1', None])
def test_bad_seeds(seed):
    with pytest.raises(UserError): seeded(seed)

def test_seeds():
    draws = [torch.rand(4, generator=seeded(s)) for s in (0, 1, 2**63 - 1, 0)]
    assert torch.equal(draws[0], draws[3]) and len({tuple(d.tolist()) for d in draws}) == 3

@pytest.mark.parametrize('shape', [(2,), (3, 2), (), (3, 1)])
def test_what_are_no_points_is_named(shape):
    check_points(torch.zeros(0, 3))
    check_points(torch.zeros(3))
    with pytest.raises(UserError, match=r'^ray_d .*\(\.\.\., 3\)'): check_points(torch.zeros(shape), 'ray_d')
