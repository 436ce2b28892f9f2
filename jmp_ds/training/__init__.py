"""How models are learned: DeepSpeed engine, schedules, moving average, checkpoints, loop. deepspeed stays in here."""
