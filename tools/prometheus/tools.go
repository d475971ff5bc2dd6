//go:build tools

// Package tools pins the Prometheus and promtool that the sandbox runs when $PATH has none new enough.
package tools

import (
	_ "github.com/prometheus/prometheus/cmd/prometheus"
	_ "github.com/prometheus/prometheus/cmd/promtool"
)
