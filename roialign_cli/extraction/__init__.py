"""The main job: plan a run, lay the file out, compute it batch by batch, resume it."""
