"""One simulated video: a scene is drawn at random, moved by PyBullet and rendered on the CPU.

Lengths are in scene units (an object is about one unit wide), times in seconds, and the floor is
the plane z = 0. Gravity is weak so that objects move a few pixels between frames.
"""

import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from types import ModuleType

import numpy as np
from PIL import Image
from scipy.spatial import ConvexHull
from scipy.spatial.transform import Rotation

__all__ = ["Recipe", "render_scene"]

N_FRAMES, FPS, SIZE, SUPERSAMPLING = 24, 12, 128, 2
STEPS_PER_FRAME = 20
GRAVITY = 2.5
FIELD_OF_VIEW = 30.0  # degrees
# The renderer's shadow test compares depths in a way that only works for a near plane close to 0.
NEAR, FAR = 0.01, 60.0
PIXELS_PER_RADIAN = SIZE / 2 / np.tan(np.radians(FIELD_OF_VIEW / 2))
SMALLEST_ASPECT = 0.35  # thinner shapes fall between the patches
# File of pybullet_data -> the part of it that is a picture: left, top, right, bottom.
PHOTOGRAPHS = {
    "table/table.png": (0.0, 0.0, 1.0, 1.0),
    "tray/tray.jpg": (0.2, 0.15, 0.85, 1.0),
    "roboschool/models_outdoor/stadium/stadium_grass.jpg": (0.0, 0.0, 1.0, 1.0),
    "heightmaps/gimp_overlay_out.png": (0.0, 0.0, 1.0, 1.0),
    "jenga/jenga.png": (0.0, 0.5, 1.0, 1.0),
}
PICTURES = {
    **PHOTOGRAPHS,
    "racecar/meshes/wheel.jpg": (0.1, 0.0, 0.9, 1.0),
    "quadruped/t-motor.jpg": (0.2, 0.15, 0.85, 0.85),
}
PALETTE = np.array(  # hues far apart, on any light floor
    [
        (0.80, 0.10, 0.10),
        (0.95, 0.50, 0.08),
        (0.95, 0.85, 0.15),
        (0.55, 0.80, 0.15),
        (0.10, 0.50, 0.15),
        (0.10, 0.65, 0.60),
        (0.25, 0.65, 0.95),
        (0.12, 0.20, 0.75),
        (0.45, 0.15, 0.65),
        (0.85, 0.20, 0.75),
        (0.95, 0.60, 0.65),
        (0.42, 0.25, 0.12),
    ]
)


@dataclass(frozen=True)
class Recipe:
    """What the videos of one data set have in common.

    Attributes:
        n_objects: Fewest and most objects.
        meshes: Procedural shapes on a textured floor; otherwise boxes, spheres, cylinders on a
            plain one.
        n_tossed: Fewest and most objects that are thrown while the others rest; None throws all.
        coverage: Range of the part of the frame that the objects fill if none hides another.
        camera_moves: The camera moves on a line.
    """

    n_objects: tuple[int, int]
    meshes: bool
    n_tossed: tuple[int, int] | None
    coverage: tuple[float, float]
    camera_moves: bool = False


@dataclass(frozen=True)
class Shape:
    """A triangle mesh around its own middle, and how to collide with it."""

    vertices: np.ndarray  # float (V, 3)
    faces: np.ndarray  # int (F, 3)
    normals: np.ndarray  # float (V, 3)
    collision: Mapping[str, object] = field(default_factory=dict)

    @property
    def radius(self) -> float:
        """Radius of the sphere around the shape."""
        return float(np.linalg.norm(self.vertices, axis=1).max())

    @property
    def mean_silhouette(self) -> float:
        """Area of the convex hull's shadow, averaged over directions: a quarter of its surface."""
        return float(ConvexHull(self.vertices).area / 4)


@dataclass(frozen=True)
class Camera:
    """Where the camera is and looks; rows of ``position`` are x, y, z."""

    eye: np.ndarray
    target: np.ndarray

    @cached_property
    def axes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Unit vectors to the right, up in the picture, and forward."""
        forward = (self.target - self.eye) / np.linalg.norm(self.target - self.eye)
        right = np.cross(forward, [0.0, 0.0, 1.0])
        right /= np.linalg.norm(right)
        return right, np.cross(right, forward), forward

    def point(self, x: float, y: float, height: float) -> np.ndarray:
        """Point of the plane z = height seen at picture position x, y in [-1, 1], y upwards."""
        right, up, forward = self.axes
        ray = forward + np.tan(np.radians(FIELD_OF_VIEW / 2)) * (x * right + y * up)
        return self.eye + ray * (height - self.eye[2]) / ray[2]

    def walls(self, shrink: float) -> list[tuple[np.ndarray, np.ndarray]]:
        """Point and inward normal of the four planes that bound the view."""
        right, up, forward = self.axes
        angle = np.radians(FIELD_OF_VIEW / 2 * shrink)
        return [
            (self.eye, np.sin(angle) * forward + np.cos(angle) * side)
            for side in (right, -right, up, -up)
        ]


def render_scene(recipe: Recipe, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Video uint8 (T, H, W, 3) and labels uint8 (T, H, W) of a scene drawn from ``rng``."""
    bullet = _bullet()
    client = bullet.connect(bullet.DIRECT)
    try:
        with tempfile.TemporaryDirectory() as folder:
            return _Scene(bullet, client, recipe, rng, Path(folder)).film()
    finally:
        bullet.disconnect(client)


class _Scene:
    """The simulated world of one video; built in full by the constructor."""

    def __init__(
        self,
        bullet: ModuleType,
        client: int,
        recipe: Recipe,
        rng: np.random.Generator,
        folder: Path,
    ) -> None:
        self.bullet, self.client, self.recipe, self.rng = bullet, client, recipe, rng
        self.folder = folder
        self.cameras = _draw_cameras(recipe.camera_moves, rng)
        self.light = _draw_light(rng)
        bullet.setGravity(0, 0, -GRAVITY, physicsClientId=client)
        bullet.setPhysicsEngineParameter(
            fixedTimeStep=1 / FPS / STEPS_PER_FRAME,
            deterministicOverlappingPairs=1,
            physicsClientId=client,
        )
        self._add_floor()
        self.walls = [
            wall
            for camera in (self.cameras[0], self.cameras[-1])[: 1 + recipe.camera_moves]
            for wall in camera.walls(shrink=0.97)
        ]
        for point, normal in self.walls:
            self._add_wall(point, normal)
        self.bodies = self._add_objects()

    def film(self) -> tuple[np.ndarray, np.ndarray]:
        frames = []
        for camera in self.cameras:
            frames.append(self._picture(camera))
            for _ in range(STEPS_PER_FRAME):
                self.bullet.stepSimulation(physicsClientId=self.client)
        video, labels = zip(*frames, strict=True)
        return np.stack(video), np.stack(labels)

    def _picture(self, camera: Camera) -> tuple[np.ndarray, np.ndarray]:
        side = SIZE * SUPERSAMPLING
        view = self.bullet.computeViewMatrix(camera.eye.tolist(), camera.target.tolist(), [0, 0, 1])
        projection = self.bullet.computeProjectionMatrixFOV(FIELD_OF_VIEW, 1, NEAR, FAR)
        _, _, rgba, _, body = self.bullet.getCameraImage(
            side,
            side,
            view,
            projection,
            renderer=self.bullet.ER_TINY_RENDERER,
            shadow=1,
            physicsClientId=self.client,
            **self.light,
        )
        fine = np.asarray(rgba, np.uint8).reshape(side, side, 4)[..., :3]
        ids = np.zeros(max(self.bodies) + 1, np.uint8)
        ids[self.bodies] = np.arange(1, len(self.bodies) + 1)
        label = ids[np.asarray(body).reshape(side, side)]
        blocks = label.reshape(SIZE, SUPERSAMPLING, SIZE, SUPERSAMPLING).transpose(0, 2, 1, 3)
        # The second smallest of four is the id that three or four of them have, where one has.
        return _shrink(fine), np.sort(blocks.reshape(SIZE, SIZE, -1), axis=-1)[..., 1]

    def _add_floor(self) -> None:
        cells, half = 12, 9.0
        line = np.linspace(-half, half, cells + 1)
        x, y = (a.ravel() for a in np.meshgrid(line, line + 2))
        corner = np.arange((cells + 1) ** 2).reshape(cells + 1, cells + 1)
        a, b, c, d = (
            corner[i : cells + i, j : cells + j].ravel()
            for i, j in ((0, 0), (0, 1), (1, 1), (1, 0))
        )
        tile, angle = self.rng.uniform(4, 8), self.rng.uniform(0, 2 * np.pi)
        u = (np.cos(angle) * x - np.sin(angle) * y) / tile + 50
        v = (np.sin(angle) * x + np.cos(angle) * y) / tile + 50
        visual = self._mesh(
            np.stack([x, y, 0 * x], 1),
            np.stack([a, b, c, a, c, d], 1).reshape(-1, 3),
            np.tile([0.0, 0.0, 1.0], (len(x), 1)),
            np.stack([u, v], 1),
            color=self._floor_color(),
        )
        plane = self.bullet.createCollisionShape(
            self.bullet.GEOM_PLANE, planeNormal=[0, 0, 1], physicsClientId=self.client
        )
        floor = self.bullet.createMultiBody(0, plane, visual, physicsClientId=self.client)
        self.bullet.changeDynamics(
            floor, -1, restitution=0.5, lateralFriction=0.5, physicsClientId=self.client
        )
        if self.recipe.meshes:
            name = list(PHOTOGRAPHS)[self.rng.integers(len(PHOTOGRAPHS))]
            self._paint(floor, name, side=round(tile * 40))

    def _floor_color(self) -> np.ndarray:
        if self.recipe.meshes:
            return self.rng.uniform(0.75, 1.0) * (1 - self.rng.uniform(0, 0.25, 3))
        return self.rng.uniform(0.62, 0.85) * (1 - self.rng.uniform(0, 0.16, 3))

    def _add_wall(self, point: np.ndarray, normal: np.ndarray) -> None:
        plane = self.bullet.createCollisionShape(
            self.bullet.GEOM_PLANE, planeNormal=normal.tolist(), physicsClientId=self.client
        )
        # Without a visual of its own a plane is drawn as a chessboard.
        hidden = self.bullet.createVisualShape(
            self.bullet.GEOM_SPHERE, radius=1e-3, physicsClientId=self.client
        )
        wall = self.bullet.createMultiBody(
            0, plane, hidden, point.tolist(), physicsClientId=self.client
        )
        self.bullet.changeDynamics(
            wall, -1, restitution=0.5, lateralFriction=0.0, physicsClientId=self.client
        )

    def _add_objects(self) -> list[int]:
        rng, recipe = self.rng, self.recipe
        n = int(rng.integers(recipe.n_objects[0], recipe.n_objects[1] + 1))
        n_tossed = (
            n if recipe.n_tossed is None else int(rng.integers(*recipe.n_tossed, endpoint=True))
        )
        colors = _draw_colors(n, rng)
        textured = rng.permutation(n) < n / 2 if recipe.meshes else np.zeros(n, bool)
        share = rng.uniform(*recipe.coverage) / n * rng.uniform(0.7, 1.3, n)
        pixels = np.minimum(share, 0.08) * SIZE**2
        shapes = [_draw_shape(recipe.meshes, rng) for _ in range(n)]
        distance = np.linalg.norm(self.cameras[0].eye - self.cameras[0].target)
        scales = [
            np.sqrt(p / s.mean_silhouette) * distance / PIXELS_PER_RADIAN
            for p, s in zip(pixels, shapes, strict=True)
        ]
        resting = n - n_tossed
        bodies: list[int] = []
        placed: list[tuple[np.ndarray, float]] = []
        for i in range(n):
            if i == resting and resting:
                placed = self._settle(bodies, placed)
            radius = scales[i] * shapes[i].radius
            lift = 0.0 if i < resting else rng.uniform(0, 1)
            position, room = self._place(radius, placed, lift)
            if room < 0:  # bodies that overlap are driven apart at once, much faster than tossed
                shrink = max(0.5, 1 + room / radius)
                radius, scales[i] = radius * shrink, scales[i] * shrink
            placed.append((position, radius))
            bodies.append(
                self._add_object(shapes[i], scales[i], position, colors[i], bool(textured[i]))
            )
            if i >= resting:
                self._toss(bodies[-1], position)
        # Ids must not tell which objects move.
        return [bodies[i] for i in rng.permutation(n)]

    def _place(
        self, radius: float, placed: list[tuple[np.ndarray, float]], lift: float
    ) -> tuple[np.ndarray, float]:
        """A place in view and the gap around it, negative if the best of many tries overlaps."""
        best, best_room = np.zeros(3), -float("inf")
        for _ in range(200):
            x, y = self.rng.uniform(-0.9, 0.9, 2)
            position = self.cameras[len(self.cameras) // 2].point(x, y, radius + lift)
            rooms = [np.linalg.norm((position - p)[:2]) - r for p, r in placed]
            rooms += [(position - p) @ normal for p, normal in self.walls]
            room = float(min(rooms)) - radius
            if room > best_room:
                best, best_room = position, room
            if room > 0.05:
                break
        return best, best_room

    def _add_object(
        self,
        shape: Shape,
        scale: float,
        position: np.ndarray,
        color: np.ndarray,
        textured: bool,
    ) -> int:
        rng, bullet, client = self.rng, self.bullet, self.client
        vertices = shape.vertices * scale
        visual = self._mesh(
            vertices,
            shape.faces,
            shape.normals,
            _box_uv(vertices, shape.normals, tile=rng.uniform(0.9, 1.6)),
            color=color,
            specular=rng.uniform(0, 0.6),
        )
        collision = {k: _scaled(v, scale, k) for k, v in shape.collision.items()}
        kind = getattr(bullet, str(collision.pop("kind")))
        body: int = bullet.createMultiBody(
            0.5 * scale**3,
            bullet.createCollisionShape(kind, physicsClientId=client, **collision),
            visual,
            position.tolist(),
            _random_rotation(rng),
            physicsClientId=client,
        )
        bullet.changeDynamics(
            body,
            -1,
            restitution=rng.uniform(0.4, 0.8),
            lateralFriction=rng.uniform(0.3, 0.6),
            rollingFriction=0.01,
            spinningFriction=0.01,
            linearDamping=0.05,
            angularDamping=0.05,
            physicsClientId=client,
        )
        if textured:
            self._paint(body, list(PICTURES)[rng.integers(len(PICTURES))], side=56, tinted=True)
        return body

    def _toss(self, body: int, position: np.ndarray) -> None:
        rng = self.rng
        middle = self.cameras[len(self.cameras) // 2].target + rng.normal(0, 1.4, 3)
        heading = (middle - position)[:2]
        heading /= np.linalg.norm(heading) + 1e-9
        velocity = [*(heading * rng.uniform(0.7, 1.8)), rng.uniform(-0.2, 0.6)]
        self.bullet.resetBaseVelocity(
            body, velocity, rng.normal(0, 1.2, 3).tolist(), physicsClientId=self.client
        )

    def _settle(
        self, bodies: list[int], placed: list[tuple[np.ndarray, float]]
    ) -> list[tuple[np.ndarray, float]]:
        """Let the resting objects fall and come to a stop; returns where they are then."""
        bullet, client = self.bullet, self.client
        bullet.setGravity(0, 0, -9.8, physicsClientId=client)
        for body in bodies:
            bullet.changeDynamics(
                body, -1, linearDamping=0.6, angularDamping=0.9, physicsClientId=client
            )
        for _ in range(2 * FPS * STEPS_PER_FRAME):
            bullet.stepSimulation(physicsClientId=client)
        bullet.setGravity(0, 0, -GRAVITY, physicsClientId=client)
        for body in bodies:
            bullet.resetBaseVelocity(body, [0] * 3, [0] * 3, physicsClientId=client)
            bullet.changeDynamics(
                body, -1, linearDamping=0.05, angularDamping=0.05, physicsClientId=client
            )
        positions = (
            bullet.getBasePositionAndOrientation(b, physicsClientId=client)[0] for b in bodies
        )
        return [(np.array(p), r) for p, (_, r) in zip(positions, placed, strict=True)]

    def _mesh(
        self,
        vertices: np.ndarray,
        faces: np.ndarray,
        normals: np.ndarray,
        uv: np.ndarray,
        *,
        color: np.ndarray,
        specular: float = 0.0,
    ) -> int:
        shape: int = self.bullet.createVisualShape(
            self.bullet.GEOM_MESH,
            vertices=vertices.tolist(),
            indices=faces.ravel().tolist(),
            normals=normals.tolist(),
            uvs=uv.tolist(),
            rgbaColor=[*color, 1.0],
            specularColor=[specular] * 3,
            physicsClientId=self.client,
        )
        return shape

    def _paint(self, body: int, picture: str, *, side: int, tinted: bool = False) -> None:
        """Put a random cut-out of a picture on a body, mirrored so that it tiles without seams.

        ``tinted`` takes the picture's light and shade alone, so that the body keeps its own hue.
        """
        image = _picture_file(picture)
        part = self.rng.uniform(0.35, 0.8)
        width, height = (round(part * s) for s in image.size)
        left = int(self.rng.integers(0, image.width - width + 1))
        top = int(self.rng.integers(0, image.height - height + 1))
        cut = image.crop((left, top, left + width, top + height)).resize((side, side))
        pixels = np.asarray(cut)
        pixels = np.concatenate([pixels, pixels[:, ::-1]], 1)
        pixels = np.concatenate([pixels, pixels[::-1]], 0)
        if tinted:
            grey = pixels.mean(-1, keepdims=True)
            bright = 255 * grey / np.percentile(grey, 90)
            pixels = np.repeat(np.clip(bright, 120, 255), 3, axis=-1).astype(np.uint8)
        path = self.folder / f"{body}.png"
        Image.fromarray(pixels).save(path, compress_level=1)
        texture = self.bullet.loadTexture(str(path), physicsClientId=self.client)
        self.bullet.changeVisualShape(
            body, -1, textureUniqueId=texture, physicsClientId=self.client
        )


def _draw_cameras(moves: bool, rng: np.random.Generator) -> list[Camera]:
    """The camera of each frame: looking down at the floor, still or on a line."""
    pitch, distance = np.radians(rng.uniform(42, 54)), rng.uniform(10.5, 11.5)
    target = np.array([0.0, 0.3, 0.3])
    eye = target + distance * np.array([0.0, -np.cos(pitch), np.sin(pitch)])
    if not moves:
        return [Camera(eye, target)] * N_FRAMES
    angle = rng.uniform(0, 2 * np.pi)
    direction = np.array([np.cos(angle), 0.6 * np.sin(angle), 0.0])
    travel, drift = rng.uniform(1.5, 3.0), rng.uniform(0.3, 0.8)
    return [
        Camera(
            eye + t * travel * direction + [0, 0, 0.3 * t * travel * np.sin(angle)],
            target + t * drift * direction,
        )
        for t in np.linspace(-0.5, 0.5, N_FRAMES)
    ]


def _draw_light(rng: np.random.Generator) -> dict[str, object]:
    """Arguments of the renderer for one lamp above the scene."""
    azimuth, elevation = rng.uniform(0, 2 * np.pi), np.radians(rng.uniform(50, 75))
    return {
        "lightDirection": [
            float(np.cos(azimuth) * np.cos(elevation)),
            float(np.sin(azimuth) * np.cos(elevation)),
            float(np.sin(elevation)),
        ],
        "lightDistance": 15,
        "lightColor": [1, 1, 1],
        "lightAmbientCoeff": float(rng.uniform(0.45, 0.55)),
        "lightDiffuseCoeff": float(rng.uniform(0.5, 0.65)),
        "lightSpecularCoeff": 0.25,
    }


def _draw_colors(n: int, rng: np.random.Generator) -> np.ndarray:
    """RGB in [0, 1], (n, 3): palette entries without repetition while they last, jittered."""
    order = np.concatenate([rng.permutation(len(PALETTE)) for _ in range(-(-n // len(PALETTE)))])
    return np.clip(PALETTE[order[:n]] + rng.uniform(-0.05, 0.05, (n, 3)), 0.05, 1.0)


def _draw_shape(meshes: bool, rng: np.random.Generator) -> Shape:
    if not meshes:
        kind = rng.integers(3)
        if kind == 0:
            return _box(rng.uniform(0.75, 1.0, 3))
        return _cylinder(1.0, rng.uniform(1.4, 2.0)) if kind == 1 else _sphere()
    while True:
        shape = _procedural(int(rng.integers(1000)))
        if shape is not None:
            return shape


def _box(half: np.ndarray) -> Shape:
    corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)], float)
    vertices, normals = [], []
    faces: list[tuple[int, int, int]] = []
    for axis in range(3):
        for sign in (1.0, -1.0):
            square = np.insert(corners[:: int(sign)], axis, sign, axis=1)
            if axis == 1:  # keeps the corners in anticlockwise order as seen from outside
                square = square[::-1]
            start = 4 * len(faces) // 2
            faces += [(start, start + 1, start + 2), (start, start + 2, start + 3)]
            vertices.append(square * half)
            normals.append(np.tile(np.insert([0.0, 0.0], axis, sign), (4, 1)))
    collision = {"kind": "GEOM_BOX", "halfExtents": half}
    return Shape(np.concatenate(vertices), np.array(faces), np.concatenate(normals), collision)


def _revolved(
    radius: np.ndarray, z: np.ndarray, normals: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Surface of a profile (radius, z) turned about the z axis: vertices, faces, normals."""
    sectors = 28
    angle = np.linspace(0, 2 * np.pi, sectors + 1)
    ring = np.stack([np.cos(angle), np.sin(angle)], -1)
    vertices = np.concatenate(
        [radius[:, None, None] * ring, np.broadcast_to(z[:, None, None], (len(z), len(ring), 1))],
        -1,
    )
    normal = np.concatenate(
        [
            normals[:, :1, None] * ring,
            np.broadcast_to(normals[:, 1:, None], (len(z), len(ring), 1)),
        ],
        -1,
    )
    index = np.arange(len(z) * len(ring)).reshape(len(z), len(ring))
    a, b, c, d = (
        x.ravel() for x in (index[:-1, :-1], index[:-1, 1:], index[1:, 1:], index[1:, :-1])
    )
    faces = np.stack([a, b, c, a, c, d], 1).reshape(-1, 3)
    return vertices.reshape(-1, 3), faces, normal.reshape(-1, 3)


@lru_cache(maxsize=1)
def _sphere() -> Shape:
    angle = np.linspace(-np.pi / 2, np.pi / 2, 17)
    profile = np.stack([np.cos(angle), np.sin(angle)], 1)
    return Shape(
        *_revolved(profile[:, 0], profile[:, 1], profile),
        {"kind": "GEOM_SPHERE", "radius": 1.0},
    )


def _cylinder(radius: float, height: float) -> Shape:
    r = radius * np.array([0.0, 1, 1, 1, 1, 0])
    z = height / 2 * np.array([-1.0, -1, -1, 1, 1, 1])
    normals = np.array([(0, -1), (0, -1), (1, 0), (1, 0), (0, 1), (0, 1)], float)
    return Shape(
        *_revolved(r, z, normals),
        {"kind": "GEOM_CYLINDER", "radius": radius, "height": height},
    )


@lru_cache(maxsize=1024)
def _procedural(number: int) -> Shape | None:
    """Shape ``number`` of random_urdfs with flat faces; None where thin or damaged."""
    path = _assets() / "random_urdfs" / f"{number:03d}" / f"{number:03d}.obj"
    rows = [line.split() for line in path.read_text().splitlines()]
    points = np.array([row[1:4] for row in rows if row[:1] == ["v"]], float)
    corners = np.array(
        [[int(c.split("/")[0]) for c in row[1:4]] for row in rows if row[:1] == ["f"]]
    )
    extent = np.ptp(points, axis=0)
    if not np.isfinite(points).all() or extent.min() < SMALLEST_ASPECT * extent.max():
        return None
    middle = (points.max(0) + points.min(0)) / 2
    unit = 2 / extent.max()
    vertices = ((points - middle) * unit)[corners - 1].reshape(-1, 3)
    a, b, c = vertices.reshape(-1, 3, 3).transpose(1, 0, 2)
    normal = np.cross(b - a, c - a)
    length = np.linalg.norm(normal, axis=1, keepdims=True)
    normals = np.repeat(normal / np.maximum(length, 1e-12), 3, axis=0)
    collision = {
        "kind": "GEOM_MESH",
        "fileName": str(path),
        "meshScale": np.full(3, unit),
        "collisionFramePosition": -middle * unit,
    }
    return Shape(vertices, np.arange(len(vertices)).reshape(-1, 3), normals, collision)


def _scaled(value: object, scale: float, name: str) -> object:
    if name in ("kind", "fileName"):
        return value
    return (np.asarray(value) * scale).tolist()


def _box_uv(vertices: np.ndarray, normals: np.ndarray, *, tile: float) -> np.ndarray:
    """Texture coordinates (V, 2): each point seen along the axis its normal is closest to."""
    axis = np.abs(normals).argmax(1)
    other = np.array([(1, 2), (0, 2), (0, 1)])[axis]
    return np.take_along_axis(vertices, other, 1) / tile + 50


def _random_rotation(rng: np.random.Generator) -> list[float]:
    quaternion = rng.normal(size=4)
    return list(Rotation.from_quat(quaternion).as_quat())


def _shrink(fine: np.ndarray) -> np.ndarray:
    """Area average of blocks of pixels, rounded: (H s, W s, 3) -> (H, W, 3)."""
    blocks = fine.reshape(SIZE, SUPERSAMPLING, SIZE, SUPERSAMPLING, 3).astype(np.uint16)
    return ((blocks.sum((1, 3)) + SUPERSAMPLING**2 // 2) // SUPERSAMPLING**2).astype(np.uint8)


@lru_cache(maxsize=len(PICTURES))
def _picture_file(name: str) -> Image.Image:
    image = Image.open(_assets() / name).convert("RGB")
    left, top, right, bottom = PICTURES[name]
    w, h = image.size
    return image.crop((round(left * w), round(top * h), round(right * w), round(bottom * h)))


def _assets() -> Path:
    import pybullet_data

    return Path(pybullet_data.getDataPath())


@lru_cache(maxsize=1)
def _bullet() -> ModuleType:
    """PyBullet, without the line on its build time that it prints when it is imported."""
    sys.stderr.flush()
    with open(os.devnull, "w") as nowhere:
        kept = os.dup(2)
        os.dup2(nowhere.fileno(), 2)
        try:
            import pybullet
        finally:
            os.dup2(kept, 2)
            os.close(kept)
    return pybullet
