"""How a forward pass exposes its activations.

A model's forward pass hands every tensor that has a name to `Taps`, and goes on with what it gets
back. That one mechanism overwrites (ablates) activations and gradients and captures what was asked
for, each row of a batch for itself. An ablation in the forward pass sets elements of the
activation; one in the backward pass sets elements of the gradient as it flows by. What is captured
is what the rest of the computation saw: after the ablation, in both passes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from services.scalars.autoencoders import NO_AUTOENCODERS, Autoencoder, AutoencoderSet
from services.scalars.model.locations import ActivationLocationType, LayerIndex, PassType
from services.scalars.model.packing import Group, Packing

Place = tuple[ActivationLocationType, LayerIndex]


@dataclass(frozen=True)
class RawTensorId:
    """One tensor of a forward pass, or its gradient."""

    location: ActivationLocationType
    layer: LayerIndex
    pass_type: PassType

    @property
    def place(self) -> Place:
        """The tensor, whichever pass is meant."""
        return self.location, self.layer


@dataclass(frozen=True)
class Overwrite:
    """Elements of one tensor and the value that they are set to.

    `index` has an entry an axis of one sequence's tensor; a slice takes the whole axis.
    """

    target: RawTensorId
    index: tuple[int | slice, ...]
    value: float


@dataclass(frozen=True)
class RowTaps:
    """What is captured and overwritten of one row.

    Overwrites are applied in the order given. `residuals` are places of the residual stream that
    are kept as they are, so that something can be computed from them and differentiated. Where
    there are any, the backward pass starts at the first: a gradient after it is 0, and setting it
    changes nothing.
    """

    captures: frozenset[RawTensorId] = frozenset()
    overwrites: tuple[Overwrite, ...] = ()
    residuals: tuple[Place, ...] = ()


@dataclass(frozen=True)
class _Part:
    """A tensor of some rows: the view that each row has of it, in the shape of one sequence."""

    tensor: Tensor
    slices: Mapping[int, slice]
    pairs: bool = False

    def row(self, index: int) -> Tensor:
        where = self.slices[index]
        if not self.pairs:
            return self.tensor[where]
        # (B, H, T, S) is how attention computes, (T, S, H) how the rest of the world sees it.
        return self.tensor[where.start].permute(1, 2, 0)

    def with_tensor(self, tensor: Tensor) -> _Part:
        return _Part(tensor, self.slices, self.pairs)


Overwrites = Mapping[int, Sequence[Overwrite]]
"""The overwrites of one tensor, by row."""


def _overwritten(part: _Part, by_row: Overwrites) -> Tensor:
    """The tensor, or a copy of it with the elements of all rows set."""
    rows = [row for row in part.slices if row in by_row]
    if not rows:
        return part.tensor
    changed = part.with_tensor(part.tensor.clone())
    for row in rows:
        view = changed.row(row)
        for overwrite in by_row[row]:
            view[overwrite.index] = overwrite.value
    return changed.tensor


def _overwrite_gradient(part: _Part, by_row: Overwrites) -> None:
    """Overwrites the gradient of the tensor where it flows by."""
    if part.slices.keys().isdisjoint(by_row):
        return
    # The hook must not hold the tensor that holds it: the whole graph would stay until the garbage
    # collector finds the circle.
    slices, pairs = part.slices, part.pairs
    part.tensor.register_hook(  # type: ignore[no-untyped-call]
        lambda gradient: _overwritten(_Part(gradient, slices, pairs), by_row)
    )


class Taps:
    """Captures and overwrites the named tensors of one forward pass and its backward pass.

    `rows` belong to the packing's rows, one each; by default nothing is captured. `backward` says
    whether a backward pass will follow.
    """

    def __init__(
        self,
        packing: Packing,
        rows: Sequence[RowTaps] | None = None,
        autoencoders: AutoencoderSet = NO_AUTOENCODERS,
        *,
        backward: bool = False,
    ) -> None:
        self.packing = packing
        self.rows = tuple(rows) if rows is not None else (RowTaps(),) * len(packing)
        if len(self.rows) != len(packing):
            raise ValueError(f"{len(self.rows)} rows of taps for {len(packing)} of tokens")
        self.backward = backward
        self._autoencoders = autoencoders
        self._slices = dict(enumerate(packing.slices))
        self._overwrites: dict[RawTensorId, dict[int, list[Overwrite]]] = {}
        self._captures: dict[RawTensorId, set[int]] = {}
        kept: set[Place] = set()
        for index, row in enumerate(self.rows):
            for overwrite in row.overwrites:
                by_row = self._overwrites.setdefault(self._canonical(overwrite.target), {})
                by_row.setdefault(index, []).append(overwrite)
            for target in row.captures:
                self._captures.setdefault(self._canonical(target), set()).add(index)
            kept.update(row.residuals)
        self._kept = frozenset(kept)
        self._wanted = frozenset(target.place for target in self._captures) | kept
        self._touched = self._wanted | {target.place for target in self._overwrites}
        self._forward: dict[Place, list[_Part]] = {}
        self._inputs: dict[Place, list[_Part]] = {}
        self._gradients: dict[Place, list[_Part]] = {}
        self._residuals: dict[Place, _Part] = {}
        self._seen: set[Place] = set()
        self._starts = {
            index: row.residuals[0] for index, row in enumerate(self.rows) if row.residuals
        }
        self._after_start: dict[Place, frozenset[int]] = {}
        self._injected = {
            (autoencoder.location, layer): autoencoder
            for location, layer in self._touched
            for autoencoder in [autoencoders.for_location(location)]
            if autoencoder is not None and layer in autoencoder
        }
        self._around_latents: list[tuple[Autoencoder, int, _Part]] = []

    def _canonical(self, target: RawTensorId) -> RawTensorId:
        return replace(target, location=self._autoencoders.canonical(target.location))

    def touches(self, location: ActivationLocationType, layer: LayerIndex = None) -> bool:
        """Whether anything is captured, overwritten or kept there, for any row."""
        return (location, layer) in self._touched

    def last_layer(self) -> int:
        """The last layer that anything is captured or kept from; -1 where nothing is."""
        return max((layer for _, layer in self._wanted if layer is not None), default=-1)

    def row_touches_logits(self, index: int) -> bool:
        """Whether a row's logits are captured or overwritten."""
        row = self.rows[index]
        targets = (*row.captures, *(overwrite.target for overwrite in row.overwrites))
        return any(target.location is ActivationLocationType.LOGITS for target in targets)

    def ends_in_layers(self) -> bool:
        """Whether nothing after the last layer is captured or kept."""
        return not any(
            layer is None and location is not ActivationLocationType.RESID_POST_EMBEDDING
            for location, layer in self._wanted
        )

    def complete(self) -> bool:
        """Whether everything that is captured or kept was tapped already."""
        return self._wanted <= self._seen

    def begin(self, x: Tensor, layer: LayerIndex) -> Tensor:
        """Begins the graph at the residual stream that enters a layer, if it begins there.

        Nothing before the first tensor whose gradient is captured needs a graph. None is the
        embedding, before it is tapped.
        """
        if self.backward and not x.requires_grad and self._begins_at(layer):
            x.requires_grad_()
        return x

    def _begins_at(self, layer: LayerIndex) -> bool:
        for target in self._captures:
            if target.pass_type is PassType.BACKWARD:
                if target.location is ActivationLocationType.RESID_POST_EMBEDDING:
                    return True
                if layer is not None and (target.layer is None or target.layer <= layer):
                    return True
        return False

    def __call__(
        self,
        tensor: Tensor,
        location: ActivationLocationType,
        layer: LayerIndex = None,
        slices: Mapping[int, slice] | None = None,
    ) -> Tensor:
        """The tensor that the forward pass must go on with.

        Its first axis is that of the packing, or `slices` says where each row stands on it.
        """
        place = (location, layer)
        if place in self._touched:
            part = _Part(tensor, self._slices if slices is None else slices)
            tensor = self._tap(part, location, layer)
        autoencoder = self._injected.get(place)
        if autoencoder is not None and layer is not None:
            tensor = self._inject(tensor, autoencoder, layer)
        return tensor

    def pairs(
        self, tensor: Tensor, location: ActivationLocationType, layer: LayerIndex, group: Group
    ) -> Tensor:
        """The same for what stands between two tokens: (B, H, T, S) for a group of rows."""
        if (location, layer) not in self._touched:
            return tensor
        places = {row: slice(place, place + 1) for place, row in enumerate(group.rows)}
        return self._tap(_Part(tensor, places, pairs=True), location, layer)

    def _tap(self, part: _Part, location: ActivationLocationType, layer: LayerIndex) -> Tensor:
        place = (location, layer)
        self._seen.add(place)
        forward = RawTensorId(location, layer, PassType.FORWARD)
        backward = RawTensorId(location, layer, PassType.BACKWARD)
        part = part.with_tensor(_overwritten(part, self._overwrites.get(forward, {})))
        tensor = part.tensor
        # As other rows may start later, a row's gradients after its start are passed by in vain.
        self._after_start[place] = frozenset(
            row for row, start in self._starts.items() if start in self._seen and start != place
        )
        if tensor.requires_grad:
            _overwrite_gradient(part, self._gradient_overwrites(backward))
        if self.backward and backward in self._captures:
            self._inputs.setdefault(place, []).append(part)
        if forward in self._captures:
            self._forward.setdefault(place, []).append(part.with_tensor(tensor.detach()))
        if place in self._kept:
            self._residuals[place] = part
        return tensor

    def _inject(self, x: Tensor, autoencoder: Autoencoder, layer: int) -> Tensor:
        """Puts an autoencoder with its error into the way of the tensor (N, I) that it reads.

        As x = decode(z) + (x - decode(z)), what goes on is x itself to the bit, and so is its
        gradient, in all rows that overwrite neither latents nor error.
        """
        names = (autoencoder.latent_location, autoencoder.error_location)
        self._seen.update((name, layer) for name in names)
        targets = [RawTensorId(name, layer, which) for name in names for which in PassType]
        ablated = {row for target in targets for row in self._overwrites.get(target, {})}
        observed = {row for target in targets for row in self._captures.get(target, ())} - ablated
        if observed:
            x = self._observe_latents(x, autoencoder, layer, observed)
        if not ablated:
            return x
        pieces: list[Tensor] = []
        done = 0
        for row in sorted(ablated, key=lambda each: self._slices[each].start):
            where = self._slices[row]
            pieces += [
                x[done : where.start],
                self._change_latents(x[where], row, autoencoder, layer),
            ]
            done = where.stop
        return torch.cat([*pieces, x[done:]])

    def _change_latents(self, x: Tensor, row: int, autoencoder: Autoencoder, layer: int) -> Tensor:
        """One row's tensor (T, I), with its latents and error tapped on the way."""
        whole = {row: slice(0, x.shape[0])}
        latents = autoencoder.encode(layer, x)
        error = x - autoencoder.decode(layer, latents)
        # Views of their own: a gradient of what goes on, without that of what it is compared with.
        latents_after = self._tap(
            _Part(latents.view_as(latents), whole), autoencoder.latent_location, layer
        )
        error_after = self._tap(
            _Part(error.view_as(error), whole), autoencoder.error_location, layer
        )
        change = (latents_after - latents) @ autoencoder.decoder(layer)
        return x + change + (error_after - error)

    def _observe_latents(
        self, x: Tensor, autoencoder: Autoencoder, layer: int, rows: set[int]
    ) -> Tensor:
        """Captures latents and errors of rows that go on as they are; no graph is needed for it."""
        slices: dict[int, slice] = {}
        pieces: list[Tensor] = []
        done = 0
        for row in sorted(rows):
            pieces.append(x.detach()[self._slices[row]])
            slices[row] = slice(done, done + len(pieces[-1]))
            done += len(pieces[-1])
        inputs = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        latents = autoencoder.encode(layer, inputs)
        for name in (autoencoder.latent_location, autoencoder.error_location):
            if RawTensorId(name, layer, PassType.FORWARD) in self._captures:
                is_latent = name is autoencoder.latent_location
                kept = latents if is_latent else inputs - autoencoder.decode(layer, latents)
                self._forward.setdefault((name, layer), []).append(_Part(kept, slices))
        if self.backward:
            # The gradient of what goes on is that of the error, and gives that of the latents.
            x = x.view_as(x)
            own = {row: self._slices[row] for row in rows}
            self._around_latents.append((autoencoder, layer, _Part(x, own)))
        return x

    def _gradient_overwrites(self, target: RawTensorId) -> Overwrites:
        """The overwrites of a gradient, of rows whose backward pass reaches it."""
        in_vain = self._after_start.get(target.place, frozenset())
        by_row = self._overwrites.get(target, {})
        return {row: each for row, each in by_row.items() if row not in in_vain}

    def residuals(self, row: int) -> list[Tensor]:
        """The places of the residual stream (T, D) that a row keeps, with their graph."""
        return [self._residuals[place].row(row) for place in self.rows[row].residuals]

    def differentiate(self, scalars: Sequence[Tensor]) -> None:
        """Runs the backward pass of the rows' scalars; each row gets the gradients of its own.

        Rows don't depend on each other, so that the gradient of the sum is every row's gradient.
        Weights take no part: only activations are differentiated, and nothing is left behind.
        """
        around = [part for _, _, part in self._around_latents]
        parts = [*(part for each in self._inputs.values() for part in each), *around]
        inputs = {id(part.tensor): part.tensor for part in parts if part.tensor.requires_grad}
        outputs = [scalar for scalar in scalars if scalar.requires_grad]
        gradients: dict[int, Tensor] = {}
        if inputs and outputs:
            found = torch.autograd.grad(
                outputs, list(inputs.values()), allow_unused=True, materialize_grads=True
            )
            gradients = dict(zip(inputs, found, strict=True))

        def gradient_of(part: _Part) -> _Part:
            gradient = gradients.get(id(part.tensor))
            return part.with_tensor(torch.zeros_like(part.tensor) if gradient is None else gradient)

        for (location, layer), captured in self._inputs.items():
            target = RawTensorId(location, layer, PassType.BACKWARD)
            overwrites = self._gradient_overwrites(target)
            for part in map(gradient_of, captured):
                # autograd hands out the gradient as it was before the hooks of a tensor ran.
                overwritten = part.with_tensor(_overwritten(part, overwrites))
                self._gradients.setdefault((location, layer), []).append(overwritten)
        for autoencoder, at, part in self._around_latents:
            after = gradient_of(part)
            self._gradients.setdefault((autoencoder.error_location, at), []).append(after)
            if RawTensorId(autoencoder.latent_location, at, PassType.BACKWARD) in self._captures:
                of_latents = after.with_tensor(after.tensor @ autoencoder.decoder(at).T)
                self._gradients.setdefault((autoencoder.latent_location, at), []).append(of_latents)
        self._inputs.clear()
        self._around_latents.clear()
        self._residuals.clear()

    def row(self, index: int) -> dict[RawTensorId, Tensor]:
        """What was captured of a row, in the shapes of one sequence.

        Tensors are views of those of the whole batch.
        """
        captured: dict[RawTensorId, Tensor] = {}
        for target in self.rows[index].captures:
            stored = self._forward if target.pass_type is PassType.FORWARD else self._gradients
            for part in stored.get(self._canonical(target).place, ()):
                if index in part.slices:
                    captured[target] = part.row(index)
        return captured
