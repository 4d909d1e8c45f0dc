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
from services.scalars.model.tapped_parts import (
    Overwrite,
    Part,
    Place,
    RawTensorId,
    find_row,
    overwritten,
    watch_gradient,
    without_gradient,
)

__all__ = ["Overwrite", "Place", "RawTensorId", "RowTaps", "Taps"]


@dataclass(frozen=True)
class RowTaps:
    """What is captured and overwritten of one row.

    Overwrites are applied in the order given. `residuals` are places of the residual stream that
    are kept as they are, so that something can be computed from them and differentiated. Where
    there are any, the backward pass starts at the first: a gradient after it is 0, setting it
    changes nothing, and nothing of it comes back to the start.
    """

    captures: frozenset[RawTensorId] = frozenset()
    overwrites: tuple[Overwrite, ...] = ()
    residuals: tuple[Place, ...] = ()


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
        self._forward: dict[Place, list[Part]] = {}
        self._gradients: dict[Place, list[Part]] = {}
        self._shapes: dict[Place, list[Part]] = {}
        self._root: Tensor | None = None
        self._residuals: dict[Place, Part] = {}
        self._seen: set[Place] = set()
        self._starts = {
            index: row.residuals[0] for index, row in enumerate(self.rows) if row.residuals
        }
        self._injected = {
            (autoencoder.location, layer): autoencoder
            for location, layer in self._touched
            for autoencoder in [autoencoders.for_location(location)]
            if autoencoder is not None and layer in autoencoder
        }

    def _canonical(self, target: RawTensorId) -> RawTensorId:
        return replace(target, location=self._autoencoders.canonical(target.location))

    def touches(self, location: ActivationLocationType, layer: LayerIndex = None) -> bool:
        """Whether anything is captured, overwritten or kept there, for any row."""
        return (location, layer) in self._touched

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
        if not self.backward or x.requires_grad or not self._begins_at(layer):
            return x
        self._root = x.requires_grad_()
        return x.view_as(x)

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
            part = Part(tensor, self._slices if slices is None else slices)
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
        return self._tap(Part(tensor, places, pairs=True), location, layer)

    def _tap(self, part: Part, location: ActivationLocationType, layer: LayerIndex) -> Tensor:
        place = (location, layer)
        self._seen.add(place)
        forward = RawTensorId(location, layer, PassType.FORWARD)
        backward = RawTensorId(location, layer, PassType.BACKWARD)
        part = part.with_tensor(overwritten(part, self._overwrites.get(forward, {})))
        tensor = part.tensor
        wanting = self._captures.get(backward, set())
        if self.backward and wanting:
            self._shapes.setdefault(place, []).append(part.with_tensor(tensor.detach().to("meta")))
        if tensor.requires_grad:
            in_vain = self._after_start(place)
            by_row = self._overwrites.get(backward, {})
            by_row = {row: each for row, each in by_row.items() if row not in in_vain}
            kept = self._gradients.setdefault(place, [])
            watch_gradient(part, by_row, wanting - in_vain, kept)
        if forward in self._captures:
            found = part.with_tensor(tensor.detach()).of_rows(self._captures[forward])
            self._forward.setdefault(place, []).extend(found)
        if place in self._kept:
            self._residuals[place] = part
        starting = [row for row, start in self._starts.items() if start == place]
        return without_gradient(part, starting) if starting else tensor

    def _after_start(self, place: Place) -> frozenset[int]:
        """The rows whose backward pass starts before a place that is tapped now.

        Other rows may start later. Then a gradient flows by of these rows too, and in vain: 0, or,
        where their activations are not finite, no number.
        """
        return frozenset(
            row for row, start in self._starts.items() if start in self._seen and start != place
        )

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
            Part(latents.view_as(latents), whole), autoencoder.latent_location, layer
        )
        error_after = self._tap(
            Part(error.view_as(error), whole), autoencoder.error_location, layer
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
            is_latent = name is autoencoder.latent_location
            forward = self._captures.get(RawTensorId(name, layer, PassType.FORWARD))
            if forward:
                kept = latents if is_latent else inputs - autoencoder.decode(layer, latents)
                part = Part(kept, slices)
                self._forward.setdefault((name, layer), []).extend(part.of_rows(forward))
            backward = self._captures.get(RawTensorId(name, layer, PassType.BACKWARD))
            if backward and self.backward:
                shape = (latents if is_latent else inputs).to("meta")
                self._shapes.setdefault((name, layer), []).append(Part(shape, slices))
        return self._observe_gradients(x, autoencoder, layer, rows) if x.requires_grad else x

    def _observe_gradients(
        self, x: Tensor, autoencoder: Autoencoder, layer: int, rows: set[int]
    ) -> Tensor:
        """The gradient of what goes on is that of the error, and gives that of the latents."""
        slices = {row: self._slices[row] for row in rows}
        reached = rows - self._after_start((autoencoder.location, layer))
        of_error, of_latents = (
            (
                self._captures.get(RawTensorId(name, layer, PassType.BACKWARD), set()) & reached,
                self._gradients.setdefault((name, layer), []),
            )
            for name in (autoencoder.error_location, autoencoder.latent_location)
        )
        decoder = autoencoder.decoder(layer)

        def flows(gradient: Tensor) -> None:
            passing = Part(gradient, slices)
            of_error[1].extend(passing.of_rows(of_error[0]))
            for part in passing.of_rows(of_latents[0]):
                of_latents[1].append(part.with_tensor(part.tensor @ decoder.T))

        x = x.view_as(x)
        x.register_hook(flows)  # type: ignore[no-untyped-call]
        return x

    def residuals(self, row: int) -> list[Tensor]:
        """The places of the residual stream (T, D) that a row keeps, with their graph."""
        return [self._residuals[place].row(row) for place in self.rows[row].residuals]

    def differentiate(self, scalars: Sequence[Tensor]) -> None:
        """Runs the backward pass of the rows' scalars; each row gets the gradients of its own.

        Rows don't depend on each other, so that the gradient of the sum is every row's gradient.
        Weights take no part: only activations are differentiated, and nothing is left behind.
        """
        outputs = [scalar for scalar in scalars if scalar.requires_grad]
        if self._root is not None and outputs:
            # Gradients are kept where they flow by; that of the root is only where they end.
            torch.autograd.grad(outputs, self._root)
        self._root = None
        self._residuals.clear()

    def row(self, index: int) -> dict[RawTensorId, Tensor]:
        """What was captured of a row, in the shapes of one sequence.

        Tensors may be views of those of the whole batch. A gradient is 0 where it never flowed.
        """
        captured: dict[RawTensorId, Tensor] = {}
        for target in self.rows[index].captures:
            place = self._canonical(target).place
            if target.pass_type is PassType.FORWARD:
                found = find_row(self._forward, place, index)
            else:
                found = find_row(self._gradients, place, index)
                if found is None:
                    shape = find_row(self._shapes, place, index)
                    if shape is not None:
                        found = torch.zeros_like(shape, device=self.packing.device)
            if found is not None:
                captured[target] = found
        return captured
