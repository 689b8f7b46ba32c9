// Command dovepush turns Dovecot's push notifications on and off for users,
// and keeps them that way.
//
// This package turns flags and config.toml into objects, and what came of them
// into words and exit codes. What is decided is decided in package agent.
package main

import (
	"context"
	"io"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	os.Exit(interruptible(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// interruptible runs a command until SIGINT or SIGTERM. A second signal ends
// the process at once.
func interruptible(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop)
	return run(ctx, args, stdin, stdout, stderr)
}
