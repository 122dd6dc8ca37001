"""Small networks in numpy whose weights are one flat vector: what evolution strategies move."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from shoal.rl.environments import Floats, Spaces


class FlatNetwork:
    """Layers with tanh between them; the weights come as a vector, so that adding a direction is one addition.

    Args:
        spaces: of the environment.
        hidden: sizes of the hidden layers.
    """

    def __init__(self, spaces: Spaces, hidden: tuple[int, ...]) -> None:
        self._spaces = spaces
        sizes = [spaces.inputs, *hidden, spaces.outputs]
        self._shapes = list(pairwise(sizes))
        #: numbers of a weight vector
        self.size = sum(rows * columns + columns for rows, columns in self._shapes)

    def initial(self, seed: int) -> Floats:
        """Weights to begin with: scaled by the number of inputs, the last layer small."""
        rng = np.random.default_rng(seed)
        pieces = []
        for number, (rows, columns) in enumerate(self._shapes):
            scale = 0.01 if number == len(self._shapes) - 1 else 1.0
            pieces.append((scale / np.sqrt(rows) * rng.standard_normal((rows, columns))).ravel())
            pieces.append(np.zeros(columns))
        return np.concatenate(pieces).astype(np.float32)

    def layers(self, weights: Floats) -> list[tuple[Floats, Floats]]:
        """The matrices and biases in a weight vector: views, no copies."""
        found, at = [], 0
        for rows, columns in self._shapes:
            matrix = weights[at : at + rows * columns].reshape(rows, columns)
            at += rows * columns
            found.append((matrix, weights[at : at + columns]))
            at += columns
        return found

    def act(self, layers: list[tuple[Floats, Floats]], observation: Floats) -> Any:
        """The action for one observation: the best one if actions are discrete, else the output within the action's bounds."""
        value = observation
        for matrix, bias in layers[:-1]:
            value = np.tanh(value @ matrix + bias)
        matrix, bias = layers[-1]
        output = value @ matrix + bias
        return int(np.argmax(output)) if self._spaces.discrete else self._spaces.action(output)
