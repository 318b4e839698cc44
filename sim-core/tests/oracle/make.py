#!/usr/bin/env python3
"""Writes the tables that the demand forecaster's filters are compared with: what statsmodels makes of fixed series
under fixed parameters. Rows are `name,index,value`, in full precision.

    python3 -m venv VENV && VENV/bin/pip install statsmodels==0.15.0
    VENV/bin/python sim-core/tests/oracle/make.py

* structural.csv: statsmodels.tsa.statespace.KalmanFilter with level, damped slope, four harmonics of a day of 24 steps
  and two of a week as regressors whose coefficients wander; samples are missing; forecasts two days ahead.
* holt_winters.csv: statsmodels.tsa.exponential_smoothing.ets.ETSModel(A, Ad, A).
* regression.csv: KalmanFilter with constant coefficients (recursive least squares with a prior).
"""
import pathlib

import numpy as np
import statsmodels
from statsmodels.tsa.exponential_smoothing.ets import ETSModel
from statsmodels.tsa.statespace.kalman_filter import KalmanFilter

HERE = pathlib.Path(__file__).parent


def write(name, rows):
    lines = ["name,index,value"]
    for key, values in rows.items():
        for index, value in values if isinstance(values, list) else enumerate(np.atleast_1d(values)):
            lines.append(f"{key},{index},{float(value)!r}")
    (HERE / name).write_text("\n".join(lines) + "\n")
    print(name, len(lines) - 1, "rows by statsmodels", statsmodels.__version__)


def noise(n, seed):
    """Between -1 and 1, the same everywhere."""
    out, state = [], seed
    for _ in range(n):
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        out.append((state >> 33) / 2**30 - 1)
    return np.array(out)


def filtered(y, design, transition, state_cov, mean, covariance):
    """The filter's result; mean and covariance are of the state before the first step."""
    k = len(mean)
    kf = KalmanFilter(k_endog=1, k_states=k)
    kf.bind(y.reshape(-1, 1))
    kf["design"] = np.ascontiguousarray(design.T[None, :, :])
    kf["transition"], kf["selection"] = transition, np.eye(k)
    kf["state_cov"], kf["obs_cov"] = state_cov, np.eye(1)
    kf.initialize_known(transition @ mean, transition @ covariance @ transition.T + state_cov)
    kf.tolerance = 0
    return kf.filter()


def structural():
    day, n, ahead = 24, 24 * 9 + 5, 48
    damping, step, prior = 0.95, np.array([0.03, 2e-5, 3e-5]), np.array([10.0, 1e-3, 1.0])
    t = np.arange(n + ahead)
    y = 20 + 0.02 * t + 4 * np.cos(2 * np.pi * t / day) + np.sin(4 * np.pi * t / (7 * day)) + noise(len(t), 1)
    y[t >= 130] += 3
    y[(t % 17 == 5) | ((t > 60) & (t < 75)) | (t >= n)] = np.nan
    row = [np.ones(len(t)), np.zeros(len(t))]
    for steps, count in ((day, 4), (7 * day, 2)):
        for j in range(1, count + 1):
            row += [np.cos(2 * np.pi * j * t / steps), np.sin(2 * np.pi * j * t / steps)]
    design, k = np.array(row).T, len(row)
    transition = np.eye(k)
    transition[0, 1] = transition[1, 1] = damping
    part = np.minimum(np.arange(k), 2)
    mean = np.zeros(k)
    # The level starts at the first sample.
    mean[0] = y[0]
    result = filtered(y, design, transition, np.diag(step[part]), mean, np.diag(prior[part]))
    write("structural.csv", {
        "damping": damping, "noise": step, "prior": prior,
        "y": [(i, y[i]) for i in range(n) if np.isfinite(y[i])],
        "mean": result.forecasts[0, :n], "variance": result.forecasts_error_cov[0, 0, :n],
        "log_likelihood": np.nansum(result.llf_obs[:n]),
        "ahead": [(h, result.forecasts[0, n - 1 + h]) for h in range(1, ahead + 1)],
    })


def holt_winters():
    day, n, ahead = 12, 12 * 14, 30
    alpha, beta, season, damping = 0.3, 0.02, 0.25, 0.9
    t = np.arange(n)
    y = 50 + 0.1 * t + 8 * (t % day == 3) - 5 * (t % day == 7) + 2 * noise(n, 2)
    level, slope, start = 49.5, 0.2, 2 * noise(day, 3)
    model = ETSModel(y, error="add", trend="add", damped_trend=True, seasonal="add", seasonal_periods=day,
                     initialization_method="known", initial_level=level, initial_trend=slope, initial_seasonal=start)
    # Its season takes a share of the whole error, ours of what the level left.
    given = {"smoothing_level": alpha, "smoothing_trend": beta, "smoothing_seasonal": season * (1 - alpha),
             "damping_trend": damping}
    params = [given[name] for name in model.param_names if name in given]
    params += [level, slope, *start][: len(model.param_names) - len(params)]
    result = model.smooth(params)
    write("holt_winters.csv", {
        "rates": [(0, alpha), (1, beta), (2, season)], "damping": damping, "level": level, "slope": slope,
        "season": start, "y": y, "mean": np.asarray(result.fittedvalues), "log_likelihood": result.llf,
        "ahead": [(h + 1, v) for h, v in enumerate(np.asarray(result.forecast(ahead)))],
    })


def regression():
    n, k, prior = 120, 5, 0.4
    x = np.array([noise(n, 10 + i) for i in range(k)]).T
    x[:, 0] = 1
    y = x @ np.array([0.5, -1, 0, 2, 0.25]) + 0.3 * noise(n, 4)
    start = np.array([0.1, 0, 0, 0.5, 0])
    result = filtered(y, x, np.eye(k), np.zeros((k, k)), start, prior * np.eye(k))
    write("regression.csv", {
        "prior": prior, "start": start, "x": x.ravel(), "y": y, "mean": result.forecasts[0],
        "coefficient": result.filtered_state[:, -1],
    })


structural()
holt_winters()
regression()
