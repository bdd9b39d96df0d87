"""The formats that results are written in, by the names that commands take."""

from typing import Any

from .coco import COCO, COCOPolygons
from .shapes import YOLO, GeoJSON, LabelStudio
from .writers import Arrays, Labels, MapArrays, Maps, Masks, Overlay, Sheet, Tiles, Writer

# Of segmentations.
FORMATS: dict[str, type[Writer[Any]]] = {
    "labels": Labels,
    "overlay": Overlay,
    "masks": Masks,
    "coco": COCO,
    "coco-polygons": COCOPolygons,
    "npz": Arrays,
    "geojson": GeoJSON,
    "yolo": YOLO,
    "label-studio": LabelStudio,
}
# Of heat maps.
MAP_FORMATS: dict[str, type[Writer[Any]]] = {
    "sheet": Sheet,
    "overlays": Tiles,
    "maps": Maps,
    "npz": MapArrays,
}
