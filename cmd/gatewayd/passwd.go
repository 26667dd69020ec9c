package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"gatewayd/internal/downstream"
)

// maxPasswordLine is more than any password that a users_file takes.
const maxPasswordLine = 1 << 10

func newPasswdCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "passwd NAME",
		Short: "Print a line for a users_file: name:bcrypt-hash",
		Long: `Print a line for a users_file: name:bcrypt-hash.

The password is asked for twice on a terminal, else it is the first line of the
standard input. It is never an argument: other users could see it.`,
		Example: "  gatewayd passwd press >> /etc/gatewayd/users",
		Args:    usageArgs(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			password, err := readPassword(cmd.InOrStdin(), cmd.ErrOrStderr())
			if err != nil {
				return &exitError{exitUsage, err}
			}
			line, err := downstream.UserLine(args[0], string(password))
			if err != nil {
				return &exitError{exitUsage, err}
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), line)
			return err
		},
	}
}

// usageArgs makes a wrong number of arguments exit code 2.
func usageArgs(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return &exitError{exitUsage, fmt.Errorf("%w; usage: %s", err, cmd.UseLine())}
		}
		return nil
	}
}

func readPassword(in io.Reader, prompts io.Writer) ([]byte, error) {
	var password []byte
	var err error
	if f, ok := in.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		password, err = promptPassword(int(f.Fd()), prompts)
	} else {
		password, err = bufio.NewReader(io.LimitReader(in, maxPasswordLine)).ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			err = nil
		}
		password = bytes.TrimRight(password, "\r\n")
	}
	if err != nil {
		return nil, fmt.Errorf("the password cannot be read: %w", err)
	}
	return password, nil
}

func promptPassword(fd int, prompts io.Writer) ([]byte, error) {
	ask := func(prompt string) ([]byte, error) {
		fmt.Fprint(prompts, prompt)
		defer fmt.Fprintln(prompts)
		return term.ReadPassword(fd)
	}
	first, err := ask("Password: ")
	if err != nil {
		return nil, err
	}
	second, err := ask("Again: ")
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(first, second) {
		return nil, errors.New("the two are different")
	}
	return first, nil
}
