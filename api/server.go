package api

import (
	"log/slog"
	"net/http"
	"time"
)

// Bounds of what a connection may take.
const (
	headerTime = 10 * time.Second // for the head of a request
	readTime   = 30 * time.Second // for a whole request of at most 64 KiB
	idleTime   = 2 * time.Minute  // between two requests on a connection
	// writeTime is for work and answer: the longest wait, a commit that waits
	// 20 seconds for another process's lock before it, and time to send.
	writeTime = maxWait + time.Minute
	// maxHeader bounds the head of a request in bytes: a cursor has at most
	// 2,800, a user name of 512 bytes 1,536.
	maxHeader = 16 << 10
)

// Server returns an http.Server for the handler that slow clients cannot keep
// busy. What goes wrong between it and a client (a bad request line, a TLS
// handshake) is logged at debug: strangers decide how often.
func Server(handler http.Handler, log *slog.Logger) *http.Server {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: headerTime,
		ReadTimeout:       readTime,
		WriteTimeout:      writeTime,
		IdleTimeout:       idleTime,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		// OPTIONS * has its answer from the handler, like everything else.
		DisableGeneralOptionsHandler: true,
	}
}
