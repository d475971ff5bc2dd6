"""Stand-ins for Pulumi's aws, tls and grafana provider plugins (`bin/` belongs on $PATH)."""
