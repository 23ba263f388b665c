"""Slow, obvious versions of what the package does fast."""

import jax
import numpy as np
import optax
from sklearn.linear_model import ElasticNet, Lasso, Ridge


def train_linear_by_hand(kernel, bias, inputs, labels, batches, optim):
    """Softmax regression by SGD with Nesterov momentum, one plain step after the other."""
    schedules = {
        "constant": lambda: optax.constant_schedule(optim.learning_rate),
        "cosine": lambda: optax.cosine_decay_schedule(optim.learning_rate, optim.steps),
        "one_cycle": lambda: optax.cosine_onecycle_schedule(optim.steps, optim.learning_rate),
    }
    schedule = schedules[optim.schedule]()
    parameters = [kernel.astype(np.float64), bias.astype(np.float64)]
    velocity = [np.zeros_like(part) for part in parameters]
    for step, batch in enumerate(batches):
        with jax.numpy_dtype_promotion("standard"):
            rate = float(schedule(step))
        x, y = inputs[batch].astype(np.float64), labels[batch]
        logits = x @ parameters[0] + parameters[1]
        odds = np.exp(logits - logits.max(1, keepdims=True))
        error = odds / odds.sum(1, keepdims=True) - np.eye(logits.shape[1])[y]
        gradient = [x.T @ error / len(batch), error.mean(0)]
        for i, slope in enumerate(gradient):
            velocity[i] = optim.momentum * velocity[i] + slope
            direction = slope + optim.momentum * velocity[i] + optim.weight_decay * parameters[i]
            parameters[i] = parameters[i] - rate * direction
    return parameters


def convolution(kernel, images):
    """The 3x3 "SAME" convolution in the dtype of its arguments; images are (c, h, w, b)."""
    channels, height, width, _ = images.shape
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    weights = kernel.reshape(3, 3, channels, -1)
    return sum(
        np.einsum(
            "cd,chwb->dhwb",
            weights[row, column],
            padded[:, row : row + height, column : column + width],
        )
        for row in range(3)
        for column in range(3)
    )


def lasso_relative_gap(masks, outputs, weights, lam, l1_ratio=1.0):
    """(primal - dual) / (half the output variance), from the raw data, one target at a time.

    An elastic net is the lasso of more rows: a multiple of the identity, with outputs zero.
    """
    count, groups = masks.shape
    z = masks.astype(np.float64) - masks.astype(np.float64).mean(0)
    lasso, gaps = l1_ratio * np.asarray(lam), []
    for target in range(outputs.shape[1]):
        y = outputs[:, target].astype(np.float64)
        y = y - y.mean()
        w = weights[:, target].astype(np.float64)
        ridge = (1 - l1_ratio) * lam[target] / y.std() if l1_ratio < 1 else 0.0
        rows = np.concatenate([z, np.sqrt(count * ridge) * np.eye(groups)])
        gaps.append(
            _one_relative_gap(rows, np.append(y, np.zeros(groups)), w, lasso[target], count)
        )
    return np.array(gaps)


def _one_relative_gap(z, y, w, lam, count):
    residual = y - z @ w
    primal = residual @ residual / (2 * count) + lam * np.abs(w).sum()
    # Any point with |z' point|_inf <= lam is dual feasible; the residual is shrunk into it.
    point = residual / count
    steepest = np.abs(z.T @ point).max()
    if steepest > lam:
        point = point * lam / steepest
    dual = y @ point - count * (point @ point) / 2
    return (primal - dual) / (y @ y / (2 * count))


def elastic_net_by_sklearn(masks, outputs, lam, l1_ratio):
    """Weights (g, t) of one scikit-learn ElasticNet a target, on outputs of unit deviation."""
    weights = []
    for target in range(outputs.shape[1]):
        y = outputs[:, target].astype(np.float64)
        unit = y.std()
        model = ElasticNet(alpha=lam[target] / unit, l1_ratio=l1_ratio, tol=1e-9, max_iter=200_000)
        weights.append(unit * model.fit(masks.astype(np.float64), y / unit).coef_)
    return np.stack(weights, axis=1)


def lasso_by_sklearn(masks, outputs, lam):
    """Weights (g, t) and intercepts (t,) of one scikit-learn Lasso a target."""
    weights, intercepts = [], []
    for target in range(outputs.shape[1]):
        model = Lasso(alpha=lam[target], tol=1e-9, max_iter=200_000)
        model.fit(masks.astype(np.float64), outputs[:, target].astype(np.float64))
        weights.append(model.coef_)
        intercepts.append(model.intercept_)
    return np.stack(weights, axis=1), np.array(intercepts)


def largest_lam_by_loop(masks, outputs):
    """Largest absolute covariance of any group with each target."""
    largest = []
    for target in range(outputs.shape[1]):
        covariances = [
            np.cov(masks[:, group].astype(np.float64), outputs[:, target], ddof=0)[0, 1]
            for group in range(masks.shape[1])
        ]
        largest.append(np.max(np.abs(covariances)))
    return np.array(largest)


def lasso_errors_by_sklearn(masks, outputs, fold_of_row, lams):
    """Mean squared errors (folds, penalties, targets) of rows predicted from the other folds."""
    errors = []
    for fold in range(fold_of_row.max() + 1):
        unseen = fold_of_row == fold
        errors.append([])
        for lam in lams:
            weights, intercepts = lasso_by_sklearn(masks[~unseen], outputs[~unseen], lam)
            residual = outputs[unseen] - masks[unseen] @ weights - intercepts
            errors[-1].append(np.square(residual).mean(0))
    return np.array(errors)


def ridge_by_sklearn(masks, outputs, penalty):
    """Weights (g, t) of scikit-learn's Ridge, which does not divide by the number of rows."""
    model = Ridge(alpha=penalty * len(masks), solver="svd")
    return model.fit(masks.astype(np.float64), outputs.astype(np.float64)).coef_.T


def predict_by_loop(masks, weights, intercept):
    """Intercept plus the weight of every kept group."""
    predicted = np.zeros((len(masks), len(intercept)))
    for row, mask in enumerate(masks):
        for target in range(len(intercept)):
            predicted[row, target] = intercept[target]
            for group, kept in enumerate(mask):
                if kept:
                    predicted[row, target] += weights[group, target]
    return predicted


def bernoulli_masks_by_loop(root, members, alpha, replicates, groups):
    """One mask after the other, each from the key of its row."""
    stream = jax.random.fold_in(root, 0)
    masks = []
    for member in members:
        key = jax.random.fold_in(stream, int(member) // replicates)
        masks.append(np.asarray(jax.random.bernoulli(key, alpha, (groups,))))
    return np.stack(masks)


def noise_variance_by_loop(replicates):
    """Mean over masks of the variance over the seeds that are left."""
    noise = []
    for target in range(replicates.shape[2]):
        variances = []
        for mask in replicates[:, :, target]:
            left = [value for value in mask if not np.isnan(value)]
            if len(left) >= 2:
                variances.append(np.var(left, ddof=1))
        noise.append(np.mean(variances))
    return np.array(noise)


def mean_by_loop(values):
    """Mean and standard error of a list; NaN where it is too short."""
    count = len(values)
    mean = sum(values) / count if count > 0 else np.nan
    if count < 2:
        return mean, np.nan
    variance = sum((value - mean) ** 2 for value in values) / (count - 1)
    return mean, np.sqrt(variance / count)


def marginal_by_loop(masks, outputs):
    """Rows: mean without, its error, mean with minus mean without, its error."""
    columns = []
    for example in range(masks.shape[1]):
        inside, outside = [], []
        for member in range(masks.shape[0]):
            side = inside if masks[member, example] else outside
            side.append(float(outputs[member, example]))
        (with_mean, with_error), (without_mean, without_error) = map(
            mean_by_loop, (inside, outside)
        )
        difference_error = np.sqrt(with_error**2 + without_error**2)
        columns.append([without_mean, without_error, with_mean - without_mean, difference_error])
    return np.array(columns).T
