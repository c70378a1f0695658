"""ShapeNetCore's folders: <synset>/<model>/model.obj (v1) and <synset>/<model>/models/model_normalized.obj (v2).

Both are +Y up. Files beside the meshes (textures, screenshots, voxels, descriptions) are not read, but for materials.
"""

from __future__ import annotations

from pathlib import Path

LICENCE = "ShapeNet terms of use"
_MESHES = {"ShapeNetCore v2": Path("models", "model_normalized.obj"), "ShapeNetCore v1": Path("model.obj")}
_TABLE = """
02691156 airplane  02747177 trash_bin  02773838 bag  02801938 basket  02808440 bathtub  02818832 bed  02828884 bench
02834778 bicycle  02843684 birdhouse  02858304 boat  02871439 bookshelf  02876657 bottle  02880940 bowl  02924116 bus
02933112 cabinet  02942699 camera  02946921 can  02954340 cap  02958343 car  02992529 cellphone  03001627 chair
03046257 clock  03085013 keyboard  03207941 dishwasher  03211117 display  03261776 earphone  03325088 faucet
03337140 file_cabinet  03467517 guitar  03513137 helmet  03593526 jar  03624134 knife  03636649 lamp  03642806 laptop
03691459 loudspeaker  03710193 mailbox  03759954 microphone  03761084 microwave  03790512 motorbike  03797390 mug
03928116 piano  03938244 pillow  03948459 pistol  03991062 flowerpot  04004475 printer  04074963 remote_control
04090263 rifle  04099429 rocket  04225987 skateboard  04256520 sofa  04330267 stove  04379243 table
04401088 telephone  04460130 tower  04468005 train  04530566 watercraft  04554684 washer
"""
# WordNet synset → category: the 55 of v2, and bicycle and boat, which only v1 has.
SYNSETS: dict[str, str] = dict(zip(_TABLE.split()[::2], _TABLE.split()[1::2], strict=True))


def model_mesh(folder: Path, category: str) -> tuple[Path, str] | None:
    """Return the mesh in a model's folder and the release it is from, or None where it is no such folder.

    Args:
        folder: of the model.
        category: name of the category's folder; a model.obj is ShapeNet's only in a synset's.
    """
    for release, name in _MESHES.items():
        if (folder / name).is_file() and (category in SYNSETS or len(name.parts) > 1):
            return folder / name, release
    return None


def is_synset_folder(folder: Path) -> bool:
    """Say whether a folder holds models directly: is one category, not a folder of them.

    A folder of v1 must be named by its synset, or <folder>/<name>/model.obj would be the object `model` of the
    category <name>.
    """
    inner = (path for path in folder.iterdir() if path.is_dir())
    names = _MESHES.values() if folder.resolve().name in SYNSETS else [_MESHES["ShapeNetCore v2"]]
    return any((path / name).is_file() for path in inner for name in names)
