//go:build !race

package webhook

// killEvents is how many events are spooled and forwarded while the process is
// killed again and again.
const killEvents = 10_000
