package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"

	"github.com/spf13/cobra"
)

// Output rules: results go to stdout, everything else to stderr; a message
// begins with "dovepush: ", in lower case, without a full stop; what to do
// about it follows on a line of its own that begins with "hint: ".

// app is one invocation of the command.
type app struct {
	stdin          io.Reader
	stdout, stderr io.Writer

	configPath string
	logLevel   string
	logFormat  string
	log        *slog.Logger

	hinted map[string]bool // the hints that were given
}

const rootHelp = `dovepush turns Dovecot's push notifications on and off for users, and keeps
them that way: it writes the mailbox entry that Dovecot's ox driver looks for,
` + "`" + `/private/vendor/vendor.dovecot/http-notify` + "`" + `, and remembers for whom.

Settings come from -c FILE, else $DOVEPUSH_CONFIG, else /etc/dovepush/config.toml.`

const exitHelp = `Exit status:
  0    all done
  64   wrong usage
  65   bad input: a user name or identity that Dovecot must not be given
  67   no such user
  69   the server does not serve us (no METADATA, TLS not trusted); for serve, its
       address is in use
  70   an error of dovepush's own, or output that could not be written
  73   a conflict: somebody else's entry was found and kept
  75   not done now; recorded, for dovepush serve or the next run to do
  77   permission denied, or login refused
  78   configuration
  130  interrupted
With several users the gravest of 78, 77, 70, 69, 75, 65, 67, 73 counts.
`

// run is the whole command, for main and for tests.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	a := &app{stdin: stdin, stdout: stdout, stderr: stderr, hinted: map[string]bool{}}
	started := false
	root := &cobra.Command{
		Use:           "dovepush",
		Short:         "Turns Dovecot's push notifications on and off for users",
		Long:          rootHelp,
		SilenceErrors: true,
		SilenceUsage:  true,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			if cmd.Flags().Changed("config") && a.configPath == "" {
				return usagef("-c names no file")
			}
			if err := a.openLog(); err != nil {
				return err
			}
			started = true
			return nil
		},
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return usagef("say what to do; dovepush help lists the commands")
		},
	}
	root.SetUsageTemplate(root.UsageTemplate() + "\n" + exitHelp)
	flags := root.PersistentFlags()
	flags.StringVarP(&a.configPath, "config", "c", "", "settings `FILE`")
	flags.StringVar(&a.logLevel, "log-level", "warn", "least level of log messages: debug, info, warn or error")
	flags.StringVar(&a.logFormat, "log-format", "text", "format of log messages: text or json")
	root.AddGroup(&cobra.Group{ID: "users", Title: "Users:"}, &cobra.Group{ID: "setup", Title: "Setting up:"})
	root.AddCommand(a.registerCommand(), a.unregisterCommand(), a.verifyCommand(), a.statusCommand(), a.listCommand(), a.reconcileCommand(), a.serveCommand(), a.watchCommand(), a.webhooksCommand(),
		a.configCommand(), a.doctorCommand(), a.dovecotConfigCommand(), a.demoCommand(), a.versionCommand())
	root.SetHelpCommand(helpCommand(root))
	root.SetCompletionCommandGroupID("setup")
	root.InitDefaultCompletionCmd(args...)
	for _, cmd := range root.Commands() {
		if cmd.Name() == "completion" {
			cmd.Args = cobra.ArbitraryArgs
			cmd.RunE = func(*cobra.Command, []string) error { return usagef("say completion bash, zsh, fish or powershell") }
		}
	}
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err != nil && !started && !errors.As(err, new(*usageError)) {
		err = &usageError{err} // cobra's own: unknown command, flag, number of arguments
	}
	return a.exit(ctx, err)
}

// helpCommand is cobra's, but for a topic that there is not.
func helpCommand(root *cobra.Command) *cobra.Command {
	return &cobra.Command{
		Use:     "help [COMMAND]",
		GroupID: "setup",
		Short:   "Help about a command",
		RunE: func(_ *cobra.Command, args []string) error {
			cmd, rest, err := root.Find(args)
			if err != nil || len(rest) > 0 {
				return usagef("there is no command %q; dovepush help lists them", strings.Join(args, " "))
			}
			return cmd.Help()
		},
	}
}

func (a *app) openLog() error {
	var level slog.Level
	if err := level.UnmarshalText([]byte(a.logLevel)); err != nil {
		return usagef("--log-level %q is none of debug, info, warn, error", a.logLevel)
	}
	options := &slog.HandlerOptions{Level: level}
	switch a.logFormat {
	case "text":
		a.log = slog.New(slog.NewTextHandler(a.stderr, options))
	case "json":
		a.log = slog.New(slog.NewJSONHandler(a.stderr, options))
	default:
		return usagef("--log-format %q is neither text nor json", a.logFormat)
	}
	return nil
}

// path returns where the settings are read from.
func (a *app) path() string {
	if a.configPath != "" {
		return a.configPath
	}
	if path := os.Getenv("DOVEPUSH_CONFIG"); path != "" {
		return path
	}
	return "/etc/dovepush/config.toml"
}

// usageError is a command line that makes no sense.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error {
	return &usageError{fmt.Errorf(format, args...)}
}
