"""Polygons along the edges of pixels have exactly the pixels of their regions."""

import cv2
import numpy as np
import pytest

from maskclip.data.annotations.shapes import polygons as filled
from maskclip.data.polygons import edge_polygons


def area(ring):
    x, y = np.asarray(ring, float).T
    return abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_edge_polygons_are_exact(share):
    random = np.random.default_rng(round(share * 10))
    for _ in range(20):
        mask = random.random((12, 15)) < share
        rings = edge_polygons(mask)
        assert len(rings) == cv2.connectedComponents(mask.astype(np.uint8))[0] - 1
        assert sum(map(area, rings)) == mask.sum()
        assert np.array_equal(filled([r.ravel().tolist() for r in rings], (15, 12)), mask)


def test_a_pixel_has_four_corners_and_a_hole_is_kept():
    mask = np.zeros((5, 5), bool)
    mask[2, 3] = True
    (ring,) = edge_polygons(mask)
    assert sorted(map(tuple, ring.tolist())) == [(3, 2), (3, 3), (4, 2), (4, 3)]
    ring_of_pixels = np.ones((5, 5), bool)
    ring_of_pixels[2, 2] = False
    (ring,) = edge_polygons(ring_of_pixels, tolerance=0.5)
    assert area(ring) == 24


def test_a_tolerance_leaves_corners_out():
    y, x = np.mgrid[:64, :64]
    disk = (x - 31) ** 2 + (y - 31) ** 2 < 28**2
    (exact,), (simple,) = edge_polygons(disk), edge_polygons(disk, tolerance=1.0)
    assert len(simple) < len(exact) / 3
    assert area(simple) == pytest.approx(disk.sum(), rel=0.05)
