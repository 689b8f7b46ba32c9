//go:build race

package webhook

// killEvents: the race detector makes SQLite ten times as slow.
const killEvents = 1_500
