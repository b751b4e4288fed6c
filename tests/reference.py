"""Float64 NumPy references, one for each equation in a docstring.

A direction takes the gradients of one leaf, step by step, and returns the directions.
A decay takes one step. Written to be seen right, not to be fast.
"""

from fractions import Fraction

import numpy as np


def adam(gradients, b1=0.9, b2=0.999, eps=1e-8, eps_root=0.0):
    m, v, directions = 0.0, 0.0, []
    for t, g in enumerate(gradients, start=1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * np.abs(g) ** 2
        m_hat = m / (1 - b1**t)
        v_hat = v / (1 - b2**t)
        directions.append(m_hat / (np.sqrt(v_hat + eps_root) + eps))
    return directions


def nadam(gradients, b1=0.9, b2=0.999, eps=1e-8, eps_root=0.0):
    m, v, directions = 0.0, 0.0, []
    for t, g in enumerate(gradients, start=1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * np.abs(g) ** 2
        m_hat = b1 * m / (1 - b1 ** (t + 1)) + (1 - b1) * g / (1 - b1**t)
        v_hat = v / (1 - b2**t)
        directions.append(m_hat / (np.sqrt(v_hat + eps_root) + eps))
    return directions


def amsgrad(gradients, b1=0.9, b2=0.999, eps=1e-8, eps_root=0.0):
    m, v, w, directions = 0.0, 0.0, 0.0, []
    for t, g in enumerate(gradients, start=1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * np.abs(g) ** 2
        w = np.maximum(w, v / (1 - b2**t))
        directions.append(m / (1 - b1**t) / (np.sqrt(w + eps_root) + eps))
    return directions


def adam_eps_hat(gradients, b1=0.9, b2=0.999, eps=1e-7):
    m, v, directions = 0.0, 0.0, []
    for t, g in enumerate(gradients, start=1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * np.abs(g) ** 2
        correction = np.sqrt(1 - b2**t) / (1 - b1**t)
        directions.append(correction * m / (np.sqrt(v) + eps))
    return directions


def amsgrad_raw(gradients, b1=0.9, b2=0.999, eps=1e-8):
    m, v, w, directions = 0.0, 0.0, 0.0, []
    for t, g in enumerate(gradients, start=1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * np.abs(g) ** 2
        w = np.maximum(w, v)
        directions.append(m / (1 - b1**t) / (np.sqrt(w / (1 - b2**t)) + eps))
    return directions


def amsgrad_raw_eps_hat(gradients, b1=0.9, b2=0.999, eps=1e-7):
    m, v, w, directions = 0.0, 0.0, 0.0, []
    for t, g in enumerate(gradients, start=1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * np.abs(g) ** 2
        w = np.maximum(w, v)
        correction = np.sqrt(1 - b2**t) / (1 - b1**t)
        directions.append(correction * m / (np.sqrt(w) + eps))
    return directions


def radam_eps_hat(gradients, b1=0.9, b2=0.999, eps=1e-8):
    m, v, directions = 0.0, 0.0, []
    for t, g in enumerate(gradients, start=1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * np.abs(g) ** 2
        m_hat = m / (1 - b1**t)
        r = rectification(b2, t)
        if r > 0:
            directions.append(r * m_hat * np.sqrt(1 - b2**t) / (np.sqrt(v) + eps))
        else:
            directions.append(m_hat)
    return directions


def rectification(b2, t):
    """In exact fractions: in float64 ρ∞ − … would cancel to 1e-11."""
    b2 = Fraction(b2)
    end = 2 / (1 - b2) - 1
    rho = end - 2 * t * b2**t / (1 - b2**t)
    square = (rho - 4) * (rho - 2) * end / ((end - 4) * (end - 2) * rho)
    return np.sqrt(float(square)) if rho > 5 else 0.0


def nadam_with_momentum_decay(gradients, b1=0.9, b2=0.999, eps=1e-8, momentum_decay=4e-3):
    m, v, product, directions = 0.0, 0.0, 1.0, []
    for t, g in enumerate(gradients, start=1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * np.abs(g) ** 2
        mu = b1 * (1 - 0.5 * 0.96 ** (t * momentum_decay))
        mu_next = b1 * (1 - 0.5 * 0.96 ** ((t + 1) * momentum_decay))
        product = product * mu
        m_hat = mu_next * m / (1 - product * mu_next) + (1 - mu) * g / (1 - product)
        directions.append(m_hat / (np.sqrt(v / (1 - b2**t)) + eps))
    return directions


def nadam_one_correction(gradients, b1=0.9, b2=0.999, eps=1e-8, eps_root=0.0):
    m, v, directions = 0.0, 0.0, []
    for t, g in enumerate(gradients, start=1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * np.abs(g) ** 2
        m_hat = (b1 * m + (1 - b1) * g) / (1 - b1**t)
        directions.append(m_hat / (np.sqrt(v / (1 - b2**t) + eps_root) + eps))
    return directions


def trace_dampened(gradients, momentum, dampening):
    m, directions = None, []
    for g in gradients:
        m = g if m is None else (1 - dampening) * g + momentum * m
        directions.append(m)
    return directions


def trace(gradients, momentum):
    m, directions = 0.0, []
    for g in gradients:
        m = g + momentum * m
        directions.append(m)
    return directions


def nesterov_trace(gradients, momentum):
    sums = trace(gradients, momentum)
    return [g + momentum * m for g, m in zip(gradients, sums, strict=True)]


def linear(u, p, rho):
    return u + rho * p


def cautious(u, p, rho):
    agrees = (u * np.conj(p)).real >= 0
    return u + rho * p * agrees


def proximal(u, p, rho):
    return (u + rho * p) / (1 + rho)


def toward(anchor):
    return lambda u, p, rho: u + rho * (p - anchor)


def constrained(bound):
    """`bound` κ; the multiplier Λ goes from step to step in the function's own memory."""
    multiplier = 0.0

    def rule(u, p, mu):
        nonlocal multiplier
        multiplier += mu * (np.mean(np.abs(p) ** 2) - bound)
        multiplier = min(max(0.0, multiplier), 0.25)
        return u + multiplier * 2 * p

    return rule


def warm_start(steps):
    """`constrained` from the tensor's own mean square after so many steps."""
    t, rule = -1, None

    def until_then(u, p, mu):
        nonlocal t, rule
        t += 1
        if t == steps:
            rule = constrained(np.mean(np.abs(p) ** 2))
        return u if t < steps else rule(u, p, mu)

    return until_then


def train(p, gradient, direction, learning_rate, penalty, decay):
    """Any optimizer of this package: `gradient(p)` and three schedules of the step.

    `direction` is one of the functions above; `penalty` is coupled; `decay` is the whole
    decoupled rate, so `learning_rate(t) * λ` for AdamW as torch and Optax mean it.
    """
    seen, path = [], []
    for t in range(len(gradient)):
        seen.append(gradient[t](p) + penalty(t) * p)
        p = p - learning_rate(t) * direction(seen)[-1] - decay(t) * p
        path.append(p)
    return path


def to_norm(radius):
    def rule(u, p, k):
        new = p - u
        norm = np.linalg.norm(new)
        return p - new * (1 - k * (1 - radius / norm)) if radius and norm else u

    return rule


def weight_norm(u, p):
    of_u, of_p = np.linalg.norm(u), np.linalg.norm(p)
    return u * of_p / of_u if of_u and of_p else u


def newton_schulz(x, coefficients, eps=1e-8):
    """Muon's orthogonalisation of one matrix."""
    x = x / (np.linalg.norm(x) + eps)
    wide = x.shape[0] <= x.shape[1]
    x = x if wide else x.T
    for a, b, c in coefficients:
        s = x @ x.T
        x = a * x + (b * s + c * s @ s) @ x
    return x if wide else x.T


def on_sphere(p, directions, learning_rate):
    """AdamH and MuonH as Levanter has them, from the directions u of one matrix."""
    path = []
    for t, u in enumerate(directions):
        new = p - learning_rate(t) * u * np.linalg.norm(p) / max(np.linalg.norm(u), 1e-10)
        p = new / np.linalg.norm(new) * np.linalg.norm(p)
        path.append(p)
    return path
