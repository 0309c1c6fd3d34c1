package main

import (
	"strings"

	"github.com/alecthomas/kong"

	"github.com/tidegate-mesh/tidegate/libs/loadgen"
)

// kinds puts the names of the attacks into the help text.
func kinds() kong.Option { return kong.Vars{"kinds": strings.Join(loadgen.Kinds(), ", ")} }
