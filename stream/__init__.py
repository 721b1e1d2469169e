"""From frames to alerts: windows, predictions, alarms, and the processes that carry them."""
