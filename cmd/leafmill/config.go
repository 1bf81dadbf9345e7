package main

import (
	"github.com/spf13/cobra"

	"github.com/leafmill/leafmill/internal/config"
)

func (a *app) configCommand() *cobra.Command {
	var asJSON, explain bool
	var flags *config.Flags
	c := &cobra.Command{
		Use:   "config",
		Short: "Print every setting, its value and where that comes from",
		Long: `Prints the settings that a service started here and now would have, without secrets. A flag
wins over the environment, that over the file (--config or LEAFMILL_CONFIG), that over the default.
In the file LEAFMILL_EMBED_TIMEOUT is embed_timeout, or timeout below embed.`,
		Example: `  leafmill config --explain
  LEAFMILL_CONFIG=leafmill.yaml leafmill config --json`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			l, err := a.load(flags)
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(a.out, struct {
					File     string         `json:"file,omitempty"`
					Settings []config.Value `json:"settings"`
				}{l.File, l.Values})
			}
			head := []string{"SETTING", "VALUE", "FROM"}
			if explain {
				head = append(head, "WHAT IT IS")
			}
			t := newTable(a.out, head...)
			for _, v := range l.Values {
				row := []string{v.Name, or(v.Value), v.Origin}
				if explain {
					row = append(row, v.Usage)
				}
				t.row(row...)
			}
			return t.end()
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print them as JSON")
	c.Flags().BoolVar(&explain, "explain", false, "say what each is, with its bounds")
	flags = config.AddAllFlags(c.Flags())
	return c
}
