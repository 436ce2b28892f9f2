"""How models are learned: DeepSpeed engine, schedules, moving average, checkpoints, loop. Only here is deepspeed used."""
