//go:build !unix

package embedded

import (
	"os"
	"path/filepath"
)

// lockDir holds the file open; here only the rule that one process owns a folder protects it.
func lockDir(dir string) (*os.File, error) {
	return os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
}
