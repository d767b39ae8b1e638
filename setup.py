"Package metadata lives in settings.ini; this passes it to setuptools"
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup

config = ConfigParser(delimiters=['='], interpolation=None)
config.read(Path(__file__).parent/'settings.ini', encoding='utf-8')
settings = config['DEFAULT']
lib_name, lib_path = settings['lib_name'], settings['lib_path']

setup(
    name=lib_name,
    version=settings['version'],
    description=settings['description'],
    keywords=settings['keywords'].split(),
    author=settings['author'],
    long_description=Path(__file__).with_name('README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    packages=find_packages(include=[lib_path]),
    include_package_data=False,
    package_data={lib_path: ['weights/**/*', 'judge/**/*', 'static/*']},
    install_requires=settings['requirements'].split(),
    extras_require={'dev': settings['dev_requirements'].split(), 'studio': settings['studio_requirements'].split(), 'parallel': settings['parallel_requirements'].split()},
    entry_points={
        'console_scripts': settings['console_scripts'].split(),
        'nbdev': [f'{lib_name}={lib_path}._modidx:d'],
    },
)
