"""Runs on several machines belong to what schedules them: this writes what Slurm and Kubeflow want to have.

job_of(options, ...)      what is to run on how many machines (`job`)
slurm.script(job)         an sbatch script whose srun starts one torchrun a node (`slurm`)
kubernetes.manifest(job)  a TrainJob of Kubeflow Trainer (`kubernetes`)
"""
