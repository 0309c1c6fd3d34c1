// Package ops is what users can ask of the mesh and change in it, whichever way they came: REST and the page.
package ops
