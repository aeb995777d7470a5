"""Schedules and trajectories of diffusers' schedulers, for tests/pipelines/schedulers."""

import json
import os
import sys

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from safetensors.torch import save_file

FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
STEPS = [1, 2, 3, 4, 5, 6, 10, 20, 50, 100]
SHIFTS = [1.0, 3.0, 5.0, 16.0]
SHAPE = (2, 3, 2, 3, 5)


def unipc_cases():
    for shift in SHIFTS:
        for steps in STEPS:
            yield {**FLOW, "flow_shift": shift}, steps
    variants = [
        {"solver_order": 1},
        {"solver_order": 3},
        {"solver_order": 4},
        {"solver_order": 3, "solver_type": "bh1", "final_sigmas_type": "sigma_min"},
        {"solver_type": "bh1", "final_sigmas_type": "sigma_min"},
        {"solver_type": "heun"},
        {"final_sigmas_type": "sigma_min", "lower_order_final": False},
        {"disable_corrector": [0, 2, 3]},
        {"shift_terminal": 0.1},
        {"use_karras_sigmas": True},
        {"use_karras_sigmas": True, "sigma_min": 0.05, "sigma_max": 60.0},
        {"num_train_timesteps": 777},
        {"prediction_type": "sample"},
        {"prediction_type": "epsilon"},
        {"prediction_type": "v_prediction"},
        {"prediction_type": "v_prediction", "predict_x0": False, "final_sigmas_type": "sigma_min"},
    ]
    for variant in variants:
        for steps in (2, 3, 7, 20):
            yield {**FLOW, "flow_shift": 3.0, **variant}, steps
    older = [
        {},
        {"timestep_spacing": "leading", "steps_offset": 1},
        {"timestep_spacing": "trailing"},
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
        {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"},
        {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
        {"trained_betas": [0.001 * (i + 1) for i in range(50)], "num_train_timesteps": 50},
        {"predict_x0": False, "final_sigmas_type": "sigma_min"},
        {"predict_x0": False, "prediction_type": "sample", "final_sigmas_type": "sigma_min"},
        {"predict_x0": False, "prediction_type": "v_prediction", "final_sigmas_type": "sigma_min"},
        {"prediction_type": "flow_prediction"},
    ]
    for variant in older:
        for steps in (1, 3, 7, 20):
            yield variant, steps


def euler_cases():
    for shift in SHIFTS:
        for steps in STEPS:
            yield {"shift": shift}, steps
    variants = [
        {"shift_terminal": 0.1},
        {"invert_sigmas": True},
        {"use_karras_sigmas": True},
        {"use_exponential_sigmas": True},
        {"num_train_timesteps": 777},
        {"shift": 1.7},
    ]
    for variant in variants:
        for steps in (2, 3, 7, 20, 50):
            yield {"shift": 3.0, **variant}, steps


def fake_model(sample, sigma, dtype):
    """A cheap smooth stand-in for a network."""
    return (torch.sin(1.3 * sample.float()) * 0.7 + 0.2 * sigma - 0.1 * sample.float()).to(dtype)


def run(scheduler, steps, dtype, generator):
    scheduler.set_timesteps(steps)
    scheduler.set_begin_index(0)
    sample = torch.randn(SHAPE, generator=generator)
    tensors = {"sigmas": scheduler.sigmas, "timesteps": scheduler.timesteps, "initial": sample}
    outputs, samples = [], []
    for index, timestep in enumerate(scheduler.timesteps):
        output = fake_model(sample, float(scheduler.sigmas[index]), dtype)
        sample = scheduler.step(output, timestep, sample, return_dict=False)[0]
        outputs.append(output)
        samples.append(sample)
    tensors["outputs"] = torch.stack(outputs)
    tensors["samples"] = torch.stack(samples)
    return {key: value.contiguous() for key, value in tensors.items()}


def main():
    out = sys.argv[1]
    os.makedirs(out, exist_ok=True)
    generator = torch.Generator().manual_seed(3)
    index, tensors = [], {}
    makers = [(UniPCMultistepScheduler, unipc_cases),
              (FlowMatchEulerDiscreteScheduler, euler_cases)]
    for maker, cases in makers:
        for config, steps in cases():
            for dtype in (torch.float32, torch.bfloat16):
                small = steps in (3, 6, 20) and len(config) <= 3
                if dtype == torch.bfloat16 and not small:
                    continue
                # The reference cannot mix types where it keeps the prediction as it is.
                kept = maker is UniPCMultistepScheduler and (
                    config.get("prediction_type") == "sample" or not config.get("predict_x0", True))
                if dtype == torch.bfloat16 and kept:
                    continue
                name = f"case{len(index):03d}"
                scheduler = maker(**config)
                for key, value in run(scheduler, steps, dtype, generator).items():
                    tensors[f"{name}.{key}"] = value
                index.append({"name": name, "steps": steps,
                              "config": {"_class_name": maker.__name__, **config}})
    save_file(tensors, os.path.join(out, "schedulers.safetensors"))
    # What another class makes of a saved configuration.
    saved = dict(UniPCMultistepScheduler(**FLOW, flow_shift=3.0, num_train_timesteps=500).config)
    euler = FlowMatchEulerDiscreteScheduler.from_config(saved)
    euler.set_timesteps(7)
    shifted = FlowMatchEulerDiscreteScheduler.from_config(saved, shift=5.0)
    shifted.set_timesteps(7)
    save_file({"sigmas": euler.sigmas, "shifted": shifted.sigmas},
              os.path.join(out, "converted.safetensors"))
    saved = {key: value for key, value in saved.items() if key != "_use_default_values"}
    saved["_class_name"] = "UniPCMultistepScheduler"
    with open(os.path.join(out, "cases.json"), "w") as file:
        json.dump({"cases": index, "saved": saved}, file)


main()
