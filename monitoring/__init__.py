"""What people look at: dashboard, alerts and scrape config as pure functions of the settings."""
