"""The contrastive loss: functions, modules, the registered op and its backends."""
