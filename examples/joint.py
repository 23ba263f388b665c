"""Joint datamodels of any (masks, outputs) arrays: which groups act together, and how.

Here the outputs are made up so that the answer is known: any one of three groups is enough (copies
of one another), and two groups are of use only together.
"""

import numpy as np

import datamodels

rng = np.random.default_rng(0)
masks = rng.random((1000, 30)) < 0.5  # True = the group was kept
copies, partners = masks[:, [2, 11, 23]].any(1), masks[:, [5, 7]].all(1)
outputs = (2.0 * copies + 1.5 * partners + 0.2 * rng.standard_normal(1000))[:, None]

fitted, held_out = slice(400, None), slice(0, 400)
additive = datamodels.fit(masks[fitted], outputs[fitted])
joint = datamodels.fit_joint(masks[fitted], outputs[fitted])
for name, model in (("additive", additive), ("joint", joint)):
    predicted = model.predict(masks[held_out])
    print(f"{name:8s}: held-out R2 {datamodels.r2(predicted, outputs[held_out])[0]:.3f}")

everything = np.ones((5, 30), bool)
everything[1, 2] = everything[2, [2, 11]] = everything[3, [2, 11, 23]] = everything[4, 5] = False
for what, output in zip(
    ("all groups", "without a copy", "without two", "without all three", "without a partner"),
    joint.predict(everything)[:, 0],
    strict=True,
):
    print(f"{what:17s}: output {output:.2f}")

print("what acts together:")
for term in joint.terms(target=0):
    print(
        f"  {term.kind} of {term.groups}: joint effect {term.joint_effect:+.2f} "
        f"[{term.low:+.2f}, {term.high:+.2f}], q {term.q_value:.0e}, "
        f"all kept less all dropped {term.group_effect:+.2f}"
    )
