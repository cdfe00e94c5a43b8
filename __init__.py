"""stepladder: a PyTorch training framework in which every optimization is a measured rung.

Four floors, imports run down only: `launch` starts and compares runs, `trainer` is the run itself, `strategies`
changes a program one optimization at a time, `profiling` names, records and reads what a step does.
`recipes` is data. Importing this package loads no torch.
"""

__all__ = ["__version__"]

__version__ = "0.1.0"
