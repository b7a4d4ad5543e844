// Package log writes lines as K3s does, in logfmt with time, level and message, so that what reads K3s' log reads this
// one too. What the Kubernetes components say themselves goes to the same place in their own format.
package log

import (
	"fmt"
	"os"
	"strconv"
	"time"
)

// Info reports progress.
func Info(format string, args ...any) { write("info", format, args...) }

// Warn reports what is odd and goes on.
func Warn(format string, args ...any) { write("warning", format, args...) }

// Error reports what is wrong and is tried again.
func Error(format string, args ...any) { write("error", format, args...) }

// Fatal reports the one reason for which the program ends, and ends it.
func Fatal(format string, args ...any) {
	write("fatal", format, args...)
	os.Exit(1)
}

func write(level, format string, args ...any) {
	message := strconv.Quote(fmt.Sprintf(format, args...))
	fmt.Fprintf(os.Stderr, "time=%q level=%s msg=%s\n", time.Now().UTC().Format(time.RFC3339), level, message)
}
