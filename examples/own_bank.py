"""Additive datamodels of any (masks, outputs) arrays, wherever they came from.

Here the outputs are made up so that the answer is known: of 50 groups, three matter.
"""

import numpy as np

import datamodels

rng = np.random.default_rng(0)
masks = rng.random((1000, 50)) < 0.5  # True = the group was kept
effects = np.zeros(50)
effects[[3, 17, 29]] = [2.0, -1.5, 0.8]
outputs = (masks @ effects + 0.5 * rng.standard_normal(1000))[:, None].astype(np.float32)

fitted, held_out = slice(200, None), slice(0, 200)
model = datamodels.fit(masks[fitted], outputs[fitted])
predicted = model.predict(masks[held_out])

print("held-out R2: ", datamodels.r2(predicted, outputs[held_out])[0].round(3))
print("held-out LDS:", datamodels.lds(predicted, outputs[held_out])[0].round(3))
print("duality gap: ", f"{model.diagnostics.relative_gap[0]:.0e}", "(certified below 1e-5)")

effects = datamodels.effects(masks, outputs, alpha=0.5)
(low, high), q = effects.interval(), effects.q_values()
for group in np.argsort(q[:, 0])[:4]:
    print(
        f"group {group:2d}: keeping it changes the output by {effects.estimate[group, 0]:+.2f} "
        f"({low[group, 0]:+.2f} to {high[group, 0]:+.2f}; q = {q[group, 0]:.1g})"
    )

more = datamodels.how_many_more(masks, outputs, width=0.05, alpha=0.5)
print(f"for 95 % intervals of 0.05 it takes {more[0]:.0f} more members")
