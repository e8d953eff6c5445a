"""What real models learn: tasks of texts behind `core.tasks.Task`, chosen by the `[task]` section."""
