//go:build race

package agent

// manyDue is how many are due in the test of a server that refuses everybody.
// The race detector slows SQLite, which is Go here, to a fifth.
const manyDue = 2_000
