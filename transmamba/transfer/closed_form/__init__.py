"""Transfer in closed form: readouts solved layer after layer, the worth of layers, and examples for gradient steps."""
