"""What a compute driver must do, a theme in each module. `underlay.compute.driver.ComputeDriver` is all of it.

The methods, their arguments and the errors are those that compute services call drivers by. Whatever a driver need not have
does nothing, or the little that is right for most; the rest raises NotImplementedError, by which a caller knows that this
driver cannot do it.

Arguments that came later than the rest of a method are given by keyword only, so that a call by position never means something
else to one driver than to another.
"""
