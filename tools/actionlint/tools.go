//go:build tools

// Package tools pins the actionlint that `make check` runs.
package tools

import _ "github.com/rhysd/actionlint/cmd/actionlint"
